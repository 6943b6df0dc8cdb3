//! Commands of the binary, processes of it, and HTTP as plain as a client can speak it.

use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tollgate-under-test");

/// Longest wait for any condition; only a hang meets it.
const DEADLINE: Duration = Duration::from_secs(120);

/// Pause between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The exit codes that users' scripts rely on, as numbers of their own: this must not follow a change of the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    Failed,
    Usage,
    NotFound,
    Conflict,
    Unavailable,
}

impl Exit {
    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Ok,
            Some(1) => Self::Failed,
            Some(2) => Self::Usage,
            Some(4) => Self::NotFound,
            Some(5) => Self::Conflict,
            Some(6) => Self::Unavailable,
            _ => panic!("{status} is no exit code of ours"),
        }
    }
}

/// What a command said.
pub(crate) struct Said(Output);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}", self.0.status, self.out(), self.err())
    }
}

impl Said {
    pub(crate) fn exit(&self) -> Exit {
        Exit::of(self.0.status)
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// Its standard output as JSON, after it ended as expected.
    pub(crate) fn json(&self, expected: Exit) -> Value {
        assert_eq!(self.exit(), expected, "{self}");
        serde_json::from_str(&self.out()).unwrap_or_else(|e| panic!("no JSON: {e}: {self}"))
    }

    /// That it failed as expected, in words that hold all of `words`.
    pub(crate) fn fails(&self, expected: Exit, words: &[&str]) {
        assert_eq!(self.exit(), expected, "{self}");
        let said = self.err();
        for word in words {
            assert!(said.contains(word), "expected `{word}` in: {self}");
        }
        assert!(!said.contains("panicked"), "{self}");
    }
}

/// Runs a command in a folder to its end.
pub(crate) fn run(dir: &Path, words: &[&str], env: &[(&str, &str)]) -> Said {
    let mut command = Command::new(PROGRAM);
    command
        .args(words)
        .current_dir(dir)
        .env_remove("TOLLGATE_ADDR")
        .env_remove("TOLLGATE_TLS_DIR")
        .env_remove("TOLLGATE_ADMIN")
        .env_remove("TOLLGATE_LOG")
        .envs(env.iter().copied())
        .stdin(Stdio::null());
    Said(command.output().unwrap())
}

/// Runs a command whose standard output nobody reads, as behind `| true`.
pub(crate) fn run_unheard(dir: &Path, words: &[&str]) -> Said {
    let mut command = Command::new(PROGRAM);
    command.args(words).current_dir(dir).stdin(Stdio::null());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn();
    Said(child.unwrap().wait_with_output().unwrap())
}

/// A server or an edge.
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts it; what it prints goes to a file beside its configuration.
    pub(crate) fn start(dir: &Path, command: &str, config: &str) -> Self {
        let log = dir.join(format!("{config}.log"));
        let out = File::create(&log).unwrap();
        let child = Command::new(PROGRAM)
            .args([command, "--config", config])
            .current_dir(dir)
            .env_remove("TOLLGATE_LOG")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let name = format!("{command} {config}");
        Self { name, log, child }
    }

    /// Fails if it has ended.
    pub(crate) fn must_run(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended with {status}: {}", self.name, self.said());
        }
    }

    /// Asks it to end; fails unless it does, cleanly.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = until(&format!("the end of {}", self.name), || {
            self.child.try_wait().unwrap()
        });
        assert!(
            status.success(),
            "{} ended with {status}: {}",
            self.name,
            self.said()
        );
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Where it has ended already, there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again until there is something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// `GET`: status and body; `None` while nobody listens.
pub(crate) fn get(address: &SocketAddr, path: &str) -> Option<(u16, String)> {
    speak(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
    )
}

/// `POST` of JSON: status and body; `None` while nobody listens.
pub(crate) fn post(address: &SocketAddr, path: &str, body: &str) -> Option<(u16, String)> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    speak(address, &format!("{head}{body}"))
}

fn speak(address: &SocketAddr, request: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
