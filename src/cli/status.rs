//! `caxton status`: what the daemon is doing, in one screen.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;

use super::bar::{bar, share, speaks_unicode};
use super::memory::nearest_limit;
use super::{Connection, print_json, print_table};
use crate::api::wire::memory::MemoryStatus;
use crate::api::wire::tenants::Tenant;
use crate::api::wire::{self, Arithmetic, Package};
use crate::exit::Exit;
use crate::units::Bytes;

/// Show what the daemon is doing.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print the daemon's answer in JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let mut client = connection.connect().await?;
        let status: wire::Status = client.get("/status").await?;
        if self.json {
            print_json(&status)?;
        } else {
            let memory: MemoryStatus = client.get("/api/memory/status").await?;
            print(&status, &memory)?;
        }
        Ok(Exit::Ok)
    }
}

/// Columns of a bar.
const BAR: usize = 24;

fn print(status: &wire::Status, memory: &MemoryStatus) -> anyhow::Result<()> {
    let unicode = speaks_unicode();
    let mut out = io::stdout().lock();
    let ready = if status.ready { "ready" } else { "not ready" };
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    writeln!(out, "caxtond {} (pid {}), up {uptime}", status.version, status.pid)?;
    writeln!(out, "default model  {}, {ready}, {} threads", status.default_model, status.threads)?;
    if let Some(resident) = status.resident_memory_bytes {
        writeln!(out, "memory         {} resident", Bytes(resident))?;
    }
    if let Some((used, most, limit)) = nearest_limit(memory) {
        let bar = bar(share(used, most), BAR, unicode);
        writeln!(out, "               {bar} {} of {} ({limit})", Bytes(used), Bytes(most))?;
    }
    if let Some(longest) = status.packages.iter().max_by_key(|package| package.waiting) {
        let bar = bar(share(longest.waiting as u64, status.queue_size as u64), BAR, unicode);
        let of = if longest.waiting == 0 { String::new() } else { format!(" for {}", longest.id) };
        let (waiting, size) = (longest.waiting, status.queue_size);
        writeln!(out, "queue          {bar} {waiting} of {size} wait{of}")?;
    }
    let (level, source) = (&status.memory_level, &status.memory_pressure_source);
    writeln!(out, "pressure       {level}, heard from {source}")?;
    if let (Some(available), Some(total)) =
        (status.machine_memory_available_bytes, status.machine_memory_bytes)
    {
        writeln!(out, "machine        {} of {} available", Bytes(available), Bytes(total))?;
    }
    writeln!(out, "sandbox        {}", sandbox(&status.sandbox))?;
    let configuration = &status.configuration;
    let files = match configuration.files.is_empty() {
        true => "no files, defaults".to_owned(),
        false => configuration.files.join(", "),
    };
    writeln!(out, "configuration  {files} (applied {} times)", configuration.generation)?;
    if configuration.last_good {
        writeln!(out, "  last good    kept on disk: the files were wrong at the start")?;
    }
    for problem in &configuration.problems {
        writeln!(out, "  rejected     {problem}")?;
    }
    for key in &configuration.restart_needed {
        writeln!(out, "  needs restart {key}")?;
    }
    writeln!(out)?;
    drop(out);
    print_packages(&status.packages)?;
    print_tenants(&status.tenants)
}

/// `Landlock 7, seccomp`, or what is off and why.
fn sandbox(wire::sandbox::Sandbox { landlock, seccomp }: &wire::sandbox::Sandbox) -> String {
    let part = |name: &str, part: &wire::sandbox::Part| {
        let version = part.abi.map(|abi| format!(" {abi}")).unwrap_or_default();
        match &part.reason {
            None => format!("{name}{version}"),
            Some(reason) => format!("{name} off ({reason})"),
        }
    };
    [part("Landlock", landlock), part("seccomp", seccomp)].join(", ")
}

fn print_tenants(tenants: &[Tenant]) -> anyhow::Result<()> {
    if tenants.is_empty() {
        return Ok(());
    }
    let row = |tenant: &Tenant| {
        let most = tenant.max_concurrent.map_or_else(|| "-".to_owned(), |most| most.to_string());
        vec![
            tenant.name.clone(),
            tenant.model.clone(),
            tenant.priority.to_string(),
            tenant.requests.to_string(),
            tenant.in_flight.to_string(),
            most,
            tenant.refused.to_string(),
        ]
    };
    writeln!(io::stdout().lock())?;
    let headings = ["TENANT", "MODEL", "PRIORITY", "REQUESTS", "IN FLIGHT", "MOST", "REFUSED"];
    Ok(print_table(&headings, &Vec::from_iter(tenants.iter().map(row)))?)
}

/// A table of installed packages.
pub(super) fn print_packages(packages: &[Package]) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = packages.iter().map(row).collect();
    let headings = [
        "MODEL",
        "VERSION",
        "STATUS",
        "MEMORY",
        "DIMENSIONS",
        "PRECISION",
        "SIZE",
        "USED",
        "ORIGIN",
    ];
    print_table(&headings, &rows)?;
    let mut out = io::stdout().lock();
    for package in packages {
        if let Some(Arithmetic { precision, isa, reason }) = &package.arithmetic {
            writeln!(out, "{}: computed in {precision} with {isa}: {reason}", package.id)?;
        }
        if !package.current {
            let Package { id, version, revision, .. } = package;
            writeln!(
                out,
                "{id}: version {version}, revision {revision}, is not what \"{id}\" means"
            )?;
        }
        if let Some(problem) = &package.problem {
            writeln!(out, "{}: {problem}", package.id)?;
        }
    }
    Ok(())
}

fn row(package: &Package) -> Vec<String> {
    let memory = match package.residency.as_deref() {
        Some("resident") => Bytes(package.resident_bytes).to_string(),
        Some(other) => other.to_owned(),
        None => "-".to_owned(),
    };
    vec![
        package.id.clone(),
        package.version.clone(),
        package.status.clone(),
        memory,
        package.dimensions.to_string(),
        package.precision.clone(),
        Bytes(package.size_bytes).to_string(),
        package.access_count.to_string(),
        package.origin.clone(),
    ]
}
