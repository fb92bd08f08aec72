//! Switches a sensor's recording on or off and leaves it so: `record SENSOR on|off DIR`, as root. For measuring what recording
//! costs with no reader about (vm/tests/ebpf-cost.sh).

use farwrite_capture::{ChangeSource, ReadState, SensorChoice, SensorOptions, WatchRoot};
use farwrite_core::BytePath;
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [sensor, state, dir] = &args[..] else {
        panic!("usage: record ebpf|kmod on|off DIR");
    };
    let choice = match sensor.as_str() {
        "ebpf" => SensorChoice::Ebpf,
        "kmod" => SensorChoice::Kmod,
        other => panic!("{other} does not persist"),
    };
    let root = WatchRoot::lookup(BytePath::new(dir).expect("absolute")).expect("there");
    let opened = farwrite_capture::open(choice, &[root], &SensorOptions::default());
    let mut source: Box<dyn ChangeSource> = opened.expect("opens").0;
    let mut out = Vec::new();
    while source.read(&mut out, Duration::ZERO).expect("reads") == ReadState::More {}
    source.release().expect("releases");
    match state.as_str() {
        "on" => source.leave(),
        _ => source.close(),
    }
    println!("{} messages", out.len());
}
