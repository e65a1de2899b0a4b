//! `caxton model export`: writes an installed model as a package.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use axum::body::Body;
use axum::http::Request;
use clap::Args;
use http_body_util::BodyExt;

use super::client::segment;
use super::output::{ExportTarget, OutputFile};
use super::owner::Owner;
use super::store_access::{StoreAccess, find};
use super::{AlreadyReported, Connection, print_error, progress, terminal};
use crate::base::exit::Exit;
use crate::files::FileError;
use crate::package::{SUFFIX, write_package};

/// Write an installed model as a package.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("model").required(true).args(["id", "model_id"]))]
pub(super) struct Export {
    /// Model, as `id`, `id@version` or `id@revision`.
    id: Option<String>,
    /// Model, as an option in place of the argument.
    #[arg(long, value_name = "ID")]
    model_id: Option<String>,
    /// Package to write, or `-` for standard output. A file appears when it is complete. Its name
    /// must end in `.model.tar.zst` for the drop directory to accept it.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Accepted for scripts, and without effect: a package always contains its metadata.
    #[arg(long)]
    include_metadata: bool,
}

impl Export {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        // The parser requires one of the two.
        let id = self.id.or(self.model_id).unwrap_or_default();
        let output = self.output;
        let to_file = output != Path::new("-");
        if to_file && !output.to_string_lossy().ends_with(SUFFIX) {
            print_error(&format!(
                "caxton: warning: {} does not end in {SUFFIX}; the drop directory would ignore it",
                output.display()
            ));
        }
        let mut access = match StoreAccess::daemon(connection).await? {
            Some(client) => StoreAccess::Daemon(client),
            // The owner of the store may lack the right to write where root may.
            None if to_file && Owner::of_store(&connection.settings()?)?.is_some() => {
                return export_as_owner(&id, &output, connection);
            }
            None => StoreAccess::store(connection)?,
        };
        let package = access.package(&id).await?;
        let bar = progress::bytes(package.size_bytes, "writing");
        let mut target = match to_file {
            true => ExportTarget::File(OutputFile::create(&output)?),
            false => ExportTarget::Stdout(terminal::bytes()),
        };
        match access {
            StoreAccess::Daemon(mut client) => {
                let path = format!("/api/packages/{}/export", segment(&id));
                let mut body = client.send(Request::get(path), Body::empty()).await?.into_body();
                while let Some(frame) = body.frame().await {
                    let frame =
                        frame.context("the connection closed before the export was complete")?;
                    if let Some(chunk) = frame.data_ref() {
                        target.write_all(chunk).map_err(FileError::new("write", &output))?;
                        bar.inc(chunk.len() as u64);
                    }
                }
            }
            StoreAccess::Store(here) => {
                let store = &here.0;
                let (key, _size) = find(store, &id)?;
                let (manifest, contents) = store.read(&key)?;
                let done = |done, _total| bar.set_position(done);
                let out = BufWriter::new(&mut target);
                write_package(&manifest, &contents, &done, out)?;
            }
        }
        bar.finish_and_clear();
        if target.persist()? {
            writeln!(terminal::out(), "written: {}", output.display())?;
        }
        Ok(())
    }
}

/// Runs this program again to write the package of `id` into a pipe, and copies the pipe into the
/// file `path`. The child changes to the owner of the store; this process keeps the rights to the
/// file.
fn export_as_owner(id: &str, path: &Path, connection: &Connection) -> anyhow::Result<()> {
    let mut output = OutputFile::create(path)?;
    let mut program = Command::new("/proc/self/exe");
    if let Some(config) = &connection.config {
        program.arg("--config").arg(config);
    }
    let mut child = program
        .args(["model", "export", "--output", "-", "--", id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start this program as the owner of the store")?;
    let pipe = child.stdout.take();
    // The pipe is closed before the wait, so that a child that still writes fails and ends.
    let copied = pipe.map(|mut pipe| io::copy(&mut pipe, &mut output.temporary)).transpose();
    let status = child.wait().context("cannot wait for the process that exports the model")?;
    if !status.success() {
        return Err(AlreadyReported(Exit::from_code(status.code())).into());
    }
    copied.map_err(FileError::new("write", path))?;
    output.persist()?;
    writeln!(terminal::out(), "written: {}", path.display())?;
    Ok(())
}
