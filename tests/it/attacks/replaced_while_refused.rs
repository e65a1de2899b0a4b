//! Attack: a good package replaces a refused one at the moment when that is moved to the
//! quarantine.

use std::fs;

use crate::support::packages::{dropped, file_name, until_answers};
use crate::support::{Root, pack};

#[test]
fn package_replacing_a_rejected_one_is_not_quarantined() {
    let daemon = Root::new().start();
    let ids = ["m0", "m1", "m2", "m3", "m4", "m5"];
    let good = ids.map(|id| pack("tiny-bert-mean", id, "1"));
    for (id, package) in ids.iter().zip(&good) {
        fs::write(daemon.path().join(id), package).unwrap();
        fs::write(dropped(&daemon, id), "no package").unwrap();
    }
    let quarantine = daemon.drop_directory().join("quarantine");
    // The files were listed together. When the first is moved, the others are next.
    daemon.until("the first to be moved", || {
        let moved = fs::read_dir(&quarantine).ok()?.next();
        moved.map(drop)
    });
    for id in ids {
        fs::rename(daemon.path().join(id), dropped(&daemon, id)).unwrap();
    }
    for (id, package) in ids.iter().zip(&good) {
        until_answers(&daemon, id);
        assert_eq!(fs::read(dropped(&daemon, id)).unwrap(), *package, "{id}");
        if let Ok(moved) = fs::read(quarantine.join(file_name(id))) {
            assert_eq!(moved, b"no package", "{id}");
        }
    }
}
