//! `tollgate edge`: an edge behind its HTTP door, until SIGTERM or until it stops for good.

use crate::args::Config;
use crate::output::Failure;
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use tollgate_edge::{Edge, EdgeConfig};
use tollgate_gateway::HttpConfig;

/// How long a clean end may take: units surrendered, use reported, the session closed.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// The file of an edge.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EdgeFile {
    /// The edge itself.
    edge: EdgeConfig,
    /// Its HTTP door.
    http: HttpConfig,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] when the file is wrong, nothing can be opened, the edge stopped for good (fenced, its journal
/// broken), or use was left unreported at the end.
pub async fn run(args: &Config) -> Result<(), Failure> {
    let file = load(&args.config)?;
    let edge = Edge::connect(file.edge).await.map_err(Failure::failed)?;
    let mut failure = None;
    let terminated = super::terminated()?;
    let ended = async {
        tokio::select! {
            () = terminated => {}
            // Refusing every check behind an open door helps nobody: a supervisor may start it again.
            reason = edge.failed() => failure = Some(reason),
        }
    };
    tollgate_gateway::serve(edge.clone(), &file.http, ended)
        .await
        .map_err(Failure::failed)?;
    let left = edge.close(CLOSE_DEADLINE).await;
    if let Some(reason) = failure {
        return Err(Failure::failed(format!("stopped for good: {reason}")));
    }
    if left.is_nothing() {
        tracing::info!("ended: units surrendered, use reported, session closed");
        Ok(())
    } else {
        Err(Failure::failed(format!(
            "ended with something left after {} s: {left:?}; with a journal the next start reports it",
            CLOSE_DEADLINE.as_secs()
        )))
    }
}

fn load(path: &Path) -> Result<EdgeFile, Failure> {
    let wrong = |e: &dyn std::fmt::Display| {
        Failure::usage(format!("the configuration {}: {e}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    let mut file: EdgeFile = toml::from_str(&text).map_err(|e| wrong(&e))?;
    // Paths are relative to the file.
    let base = path.parent().unwrap_or(Path::new(""));
    let tls = &mut file.edge.tls;
    for path in [&mut tls.ca, &mut tls.certificate, &mut tls.key] {
        *path = base.join(&*path);
    }
    if let Some(journal) = &mut file.edge.journal {
        *journal = base.join(&*journal);
    }
    file.edge.validate().map_err(|e| wrong(&e))?;
    Ok(file)
}
