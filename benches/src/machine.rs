//! The facts of the machine that a table of ratios must stand beside.

use std::fs::read_to_string;

/// One line: processor, cores, kernel.
#[must_use]
pub fn facts() -> String {
    let field = |file: &str, name: &str| {
        read_to_string(file).ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split(':').next_back()?.trim().to_owned())
        })
    };
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into());
    let model = field("/proc/cpuinfo", "model\t").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!(
        "{processor} (model {model}), {cores} cores, Linux {}, load {load}",
        kernel.trim()
    )
}
