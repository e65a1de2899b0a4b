//! `caxton status`: shows the state of the daemon on one screen.

use std::io::Write;
use std::time::Duration;

use clap::Args;

use super::bar::{bar, share, supports_unicode};
use super::memory::nearest_limit;
use super::{Connection, intake, print_json, print_table, terminal};
use crate::api::wire::memory::MemoryStatus;
use crate::api::wire::tenants::Tenant;
use crate::api::wire::{self, Arithmetic, Package};
use crate::base::exit::Exit;
use crate::base::printable;
use crate::base::units::Bytes;

/// Show the state of the daemon: models, packages on their way, queue, memory, store and sandbox.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print the status of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let mut client = connection.connect().await?;
        let status: wire::DaemonStatus = client.get("/status").await?;
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

fn print(status: &wire::DaemonStatus, memory: &MemoryStatus) -> anyhow::Result<()> {
    let unicode = supports_unicode();
    let mut out = terminal::out();
    let ready = if status.ready { "ready" } else { "not ready" };
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let [version, default] =
        [&status.version, &status.default_model].map(|text| printable::line(text));
    writeln!(out, "caxtond {version} (pid {}), up {uptime}", status.pid)?;
    writeln!(out, "default model  {default}, {ready}, {} threads", status.threads)?;
    if let Some(resident) = status.resident_memory_bytes {
        writeln!(out, "memory         {} resident", Bytes(resident))?;
    }
    if let Some((used, most, limit)) = nearest_limit(memory) {
        let bar = bar(share(used, most), BAR, unicode);
        writeln!(out, "               {bar} {} of {} ({limit})", Bytes(used), Bytes(most))?;
    }
    if let Some(longest) = status.packages.iter().max_by_key(|package| package.waiting) {
        let bar = bar(share(longest.waiting as u64, status.queue_size as u64), BAR, unicode);
        let of = if longest.waiting == 0 {
            String::new()
        } else {
            format!(" for {}", printable::line(&longest.id))
        };
        let (waiting, size) = (longest.waiting, status.queue_size);
        writeln!(out, "queue          {bar} {waiting} of {size} waiting{of}")?;
    }
    let [level, source] =
        [&status.memory_level, &status.memory_pressure_source].map(|text| printable::line(text));
    writeln!(out, "pressure       {level}, reported by {source}")?;
    if let (Some(available), Some(total)) =
        (status.machine_memory_available_bytes, status.machine_memory_bytes)
    {
        writeln!(out, "machine        {} of {} available", Bytes(available), Bytes(total))?;
    }
    writeln!(out, "store          {}", printable::line(&store(&status.store)))?;
    for what in &status.degraded {
        writeln!(out, "  degraded     {}", printable::line(what))?;
    }
    for (number, line) in intake::lines(status).iter().enumerate() {
        let label = if number == 0 { "packages" } else { "" };
        writeln!(out, "{label:15}{}", printable::line(line))?;
    }
    writeln!(out, "sandbox        {}", printable::line(&sandbox(&status.sandbox)))?;
    if !status.unsigned.is_empty() {
        let names = status.unsigned.join(", ");
        let names = printable::line(&names);
        writeln!(out, "unsigned       {names}: installed before keys were configured")?;
    }
    let configuration = &status.configuration;
    let files = match configuration.files.is_empty() {
        true => "no files, defaults".to_owned(),
        false => printable::line(&configuration.files.join(", ")).into_owned(),
    };
    match configuration.generation {
        // Zero means hidden: the daemon applies a configuration before it answers.
        0 => writeln!(out, "configuration  visible only to administrators")?,
        times => writeln!(out, "configuration  {files} (applied {times} times)")?,
    }
    if configuration.last_good {
        writeln!(out, "  last good    used from disk: the files had errors at the start")?;
    }
    for problem in &configuration.problems {
        writeln!(out, "  rejected     {}", printable::line(problem))?;
    }
    for key in &configuration.restart_needed {
        writeln!(out, "  needs restart {}", printable::line(key))?;
    }
    writeln!(out)?;
    drop(out);
    print_packages(&status.packages)?;
    print_tenants(&status.tenants)
}

/// Formats `ext4, fs-verity`, or the reason why fs-verity is off.
fn store(store: &wire::StoreCondition) -> String {
    let verity = match (store.verity, &store.verity_reason) {
        (true, _) => "fs-verity".to_owned(),
        (false, None) => "fs-verity off".to_owned(),
        (false, Some(reason)) => format!("fs-verity off ({reason})"),
    };
    let writable = if store.writable { "" } else { ", cannot be written" };
    format!("{}, {verity}{writable}", store.file_system)
}

/// Formats `Landlock 7, seccomp`, or the parts that are off with their reasons.
fn sandbox(wire::sandbox::Sandbox { landlock, seccomp }: &wire::sandbox::Sandbox) -> String {
    let part = |name: &str, part: &wire::sandbox::SandboxPart| {
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
    writeln!(terminal::out())?;
    let headings = ["TENANT", "MODEL", "PRIORITY", "REQUESTS", "IN FLIGHT", "MAX", "REJECTED"];
    Ok(print_table(&headings, &Vec::from_iter(tenants.iter().map(row)))?)
}

/// Prints a table of installed packages.
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
    let mut out = terminal::out();
    for package in packages {
        if let Some(Arithmetic { precision, isa, reason }) = &package.arithmetic {
            let why = format!("{}: computed in {precision} with {isa}: {reason}", package.id);
            writeln!(out, "{}", printable::line(&why))?;
        }
        let Package { id, version, revision, .. } = package;
        if package.awaits_approval {
            let what = format!(
                "{id}: version {version}, revision {revision} is waiting for approval: caxton model \
                 approve {id}@{version}"
            );
            writeln!(out, "{}", printable::line(&what))?;
        } else if !package.current {
            let what =
                format!("{id}: the id does not resolve to version {version}, revision {revision}");
            writeln!(out, "{}", printable::line(&what))?;
        }
        if let Some(corrupt) = &package.answers_for {
            let what =
                format!("{id}: version {version} answers for version {corrupt}, which is corrupt");
            writeln!(out, "{}", printable::line(&what))?;
        }
        if let Some(signer) = &package.signed_by {
            let what = format!("{}@{}: signed with key {signer}", package.id, package.version);
            writeln!(out, "{}", printable::line(&what))?;
        }
        if let Some(problem) = &package.problem {
            writeln!(out, "{}", printable::line(&format!("{}: {problem}", package.id)))?;
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
        match package.task.as_str() {
            "rerank" => "rerank".to_owned(),
            _ => package.dimensions.to_string(),
        },
        package.precision.clone(),
        Bytes(package.size_bytes).to_string(),
        package.access_count.to_string(),
        package.origin.clone(),
    ]
}
