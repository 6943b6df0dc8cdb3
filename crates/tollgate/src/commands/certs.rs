//! `tollgate certs`: the cluster's authority, certificates by role, the pepper. Keeps what is there.

use crate::args::Certs;
use crate::output::{Failure, Format, show, table};
use serde::Serialize;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tollgate_wire::certs::{Authority, CA_KEY, Validity};
use tollgate_wire::identity::Role;

/// Name of the pepper's file; nodes read it, edges never hold it.
pub const PEPPER: &str = "pepper";

/// Bytes of a pepper, before it is written in hex.
const PEPPER_BYTES: usize = 32;

/// The authority lives four times as long as what it issues, so that renewing certificates keeps it.
const AUTHORITY_LIVES: u32 = 4;

/// A file that is there now.
#[derive(Debug, Serialize)]
pub struct Made {
    file: PathBuf,
    made: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`] with the file and what to do.
pub fn run(format: Format, args: &Certs) -> Result<(), Failure> {
    let made = make(args)?;
    show(format, &made, |made| {
        let state = |made: bool| if made { "made" } else { "kept" }.to_owned();
        table(
            &["file", "state"],
            made.iter()
                .map(|m| vec![m.file.display().to_string(), state(m.made)]),
        )
    })
}

/// Makes what is missing.
///
/// # Errors
/// [`Failure`] with the file and what to do.
pub fn make(args: &Certs) -> Result<Vec<Made>, Failure> {
    let validity = Validity::days(args.days);
    let dir = &args.dir;
    let mut done = Vec::new();
    let new_authority = !dir.join(CA_KEY).exists();
    let authority = if new_authority {
        let validity = Validity::days(args.days.saturating_mul(AUTHORITY_LIVES));
        Authority::create(dir, &args.cluster, validity, false).map_err(Failure::failed)?
    } else {
        Authority::open(dir).map_err(Failure::failed)?
    };
    if authority.cluster() != args.cluster {
        return Err(Failure::usage(format!(
            "{} holds the authority of cluster `{}`, expected `{}`: choose another folder or name",
            dir.display(),
            authority.cluster(),
            args.cluster
        )));
    }
    done.push(Made {
        file: dir.join(CA_KEY),
        made: new_authority,
    });
    let mut issue = |role: Role, name: &str, hosts: &[String]| -> Result<(), Failure> {
        let file = dir.join(format!("{role}-{name}.pem"));
        let missing = !file.exists();
        if missing {
            authority
                .issue(dir, (role, name), hosts, validity, false)
                .map_err(Failure::failed)?;
        }
        done.push(Made {
            file,
            made: missing,
        });
        Ok(())
    };
    for node in &args.node {
        issue(Role::Node, &node.to_string(), &args.host)?;
    }
    for edge in &args.edge {
        issue(Role::Edge, edge, &[])?;
    }
    for admin in &args.admin {
        issue(Role::Admin, admin, &[])?;
    }
    done.push(pepper(dir)?);
    Ok(done)
}

fn pepper(dir: &Path) -> Result<Made, Failure> {
    let file = dir.join(PEPPER);
    if file.exists() {
        return Ok(Made { file, made: false });
    }
    let mut bytes = [0_u8; PEPPER_BYTES];
    getrandom::fill(&mut bytes).map_err(Failure::failed)?;
    let text = tollgate_core::hex::encode(&bytes);
    let failed = |e| Failure::failed(format!("{}: {e}", file.display()));
    let mut open = fs::OpenOptions::new();
    let mut out = open
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file)
        .map_err(failed)?;
    writeln!(out, "{text}")
        .and_then(|()| out.sync_all())
        .map_err(failed)?;
    Ok(Made { file, made: true })
}
