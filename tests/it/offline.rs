//! Tests that Caxton cannot reach a network: no crate that could, no code that names one, and only
//! AF_UNIX sockets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{Daemon, Root, golden, skipped, tiny_package};

/// Crates for network encryption, name resolution or downloads.
const NETWORK_CRATES: &[&str] = &[
    "attohttpc",
    "aws-lc-rs",
    "boring",
    "curl",
    "curl-sys",
    "hf-hub",
    "hickory-proto",
    "hickory-resolver",
    "hyper-rustls",
    "hyper-tls",
    "isahc",
    "minreq",
    "native-tls",
    "openssl",
    "openssl-sys",
    "quinn",
    "reqwest",
    "ring",
    "rustls",
    "rustls-webpki",
    "s2n-tls",
    "schannel",
    "security-framework",
    "surf",
    "tokio-native-tls",
    "tokio-rustls",
    "trust-dns-proto",
    "trust-dns-resolver",
    "ureq",
    "webpki-roots",
];

/// Names in programs that open a network socket.
const NETWORK_NAMES: &[&str] = &[
    "TcpStream",
    "TcpListener",
    "TcpSocket",
    "UdpSocket",
    "ToSocketAddrs",
    "lookup_host",
    "SocketAddrV4",
    "SocketAddrV6",
    "AddressFamily::Inet",
    "AF_INET",
    "Ipv4Addr",
    "Ipv6Addr",
];

#[test]
fn no_dependency_can_use_a_network() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal,build", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let crates: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    // Check that the list was parsed.
    assert!(crates.contains("tokenizers") && crates.contains("hyper"), "{crates:?}");
    let found: Vec<_> = NETWORK_CRATES.iter().filter(|name| crates.contains(*name)).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn source_names_no_network_api() {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut read = 0;
    while let Some(directory) = directories.pop() {
        for child in fs::read_dir(directory).unwrap() {
            let path = child.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            read += 1;
            for (index, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
                let found = NETWORK_NAMES.iter().find(|name| line.contains(*name));
                assert_eq!(found, None, "{}:{}", path.display(), index + 1);
            }
        }
    }
    assert!(read > 30);
}

/// Returns the domains of the sockets in the output of strace, such as `AF_UNIX`.
fn domains(trace: &str) -> BTreeSet<&str> {
    let calls = ["socket(", "socketpair("];
    let lines = trace.lines().filter_map(|line| {
        let at = calls.iter().find_map(|call| Some(line.find(call)? + call.len()))?;
        line[at..].split([',', ')']).next()
    });
    lines.collect()
}

#[test]
fn socket_domains_are_parsed_from_strace() {
    let trace = "12 socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0) = 3\n12 socketpair(AF_UNIX, 1, 0, [3, 4]) = 0\n\
                 [pid 9] socket(AF_INET6, SOCK_DGRAM, IPPROTO_IP) = 5\n12 connect(3, {sa_family=AF_UNIX}, 9) = 0\n";
    assert_eq!(domains(trace), BTreeSet::from(["AF_UNIX", "AF_INET6"]));
}

#[test]
fn daemon_and_cli_open_only_unix_sockets() {
    let test = "daemon_and_cli_open_only_unix_sockets";
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        return skipped(test, "strace");
    }
    let place = tempfile::tempdir().unwrap();
    let traced = |name: &str| {
        let mut strace = Command::new("strace");
        // strace runs as a grandchild, so that the program itself is the child and receives the
        // signals.
        strace
            .args(["-D", "-f", "-e", "trace=socket,socketpair", "-o"])
            .arg(place.path().join(name))
            .arg("--");
        strace
    };
    let root = Root::new();
    let config = root.config();
    let bundled = root.bundled();
    let bundled = bundled.to_str().unwrap();
    let mut program = traced("daemon");
    program.arg(env!("CARGO_BIN_EXE_caxtond"));
    let daemon = Daemon::spawn(root, program);
    daemon.wait_notified("READY=1");
    assert_eq!(daemon.embed(json!("a text")).len(), 1);

    let package = place.path().join("tiny.model.tar.zst");
    fs::write(&package, tiny_package()).unwrap();
    let package = package.to_str().unwrap();
    let (packed, exported) = (place.path().join("packed"), place.path().join("exported"));
    let (packed, exported) = (packed.to_str().unwrap(), exported.to_str().unwrap());
    let golden = golden("tiny-bert-mean");
    let golden = golden.to_str().unwrap();
    let commands: &[&[&str]] = &[
        &["embed", "a text"],
        &["status"],
        &["check"],
        &["model", "list"],
        &["model", "install", package],
        &["model", "verify", package],
        &["model", "pack", "--model-id", "other", "--source", golden, "--output", packed],
        &["model", "install", "--model-id", "third", "--source", golden],
        &["model", "list", "--json"],
        &["model", "export", "third", "--output", exported],
        &["model", "remove", "third"],
        &["model", "verify", "bundled-mini"],
        &["model", "show", "bundled-mini"],
        &["model", "known"],
        &["demo", "--bundled", bundled],
    ];
    for (index, arguments) in commands.iter().enumerate() {
        let mut command = traced(&format!("command-{index}"));
        command.arg(env!("CARGO_BIN_EXE_caxton"));
        if arguments[0] != "check" {
            command.arg("--config").arg(&config);
        }
        let output = command.args(*arguments).stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
    }
    daemon.stop();

    let mut seen = BTreeSet::new();
    for file in fs::read_dir(place.path()).unwrap() {
        let path = file.unwrap().path();
        if [package, packed, exported].iter().all(|other| path != Path::new(other)) {
            let trace = fs::read_to_string(&path).unwrap();
            seen.extend(domains(&trace).into_iter().map(str::to_owned));
        }
    }
    assert_eq!(seen, BTreeSet::from(["AF_UNIX".to_owned()]));
}
