use ledgermq_checkers::history::NEMESIS;
use ledgermq_checkers::{Event, FaultMark, History, HistoryError, Kind, Operation, edn};

use super::script::history;

const SCRIPT: &str = "0 send 1 @q0:0 key=k half due=7
    0 send! 2
    5 recv g 1@q0:0#3
    5 ack g 1
    0 commit 1
    0 recall- 1
    1 write x 3
    1 cas x 3 4
    1 read x nil";

#[test]
fn a_file_gives_back_what_was_written() {
    let mut written = history(SCRIPT);
    let fault = Operation::Fault { name: "kill".to_owned(), target: "broker-1".to_owned(), begins: true };
    let at_ns = written.events.last().expect("events").at_ns;
    written.events.push(Event { at_ns, process: NEMESIS, kind: Kind::Info, op: fault });
    let mut file = Vec::new();
    written.write(&mut file).expect("written");
    assert_eq!(History::read(file.as_slice()).expect("read"), written);
    let mark = FaultMark { at_ns, name: "kill".to_owned(), target: "broker-1".to_owned(), begins: true };
    assert_eq!(written.faults().collect::<Vec<_>>(), [mark]);
}

#[test]
fn what_is_no_history_is_refused_with_its_place() {
    let header = "{\"ledgermq_history\":1,\"scenario\":\"s\",\"seed\":1}\n";
    let event = |t: u64, p: u32, kind: &str| {
        format!("{{\"t\":{t},\"p\":{p},\"k\":\"{kind}\",\"op\":{{\"f\":\"recall\",\"number\":1}}}}\n")
    };
    for (file, said) in [
        (String::new(), "the file has no header line"),
        (header.replace(":1,\"s", ":7,\"s"), "the history has format 7; this program knows 1"),
        (format!("{header}nonsense\n"), "line 2: expected ident"),
        (format!("{header}{}", event(1, 0, "ok")), "event 0: process 0 gets an answer without having asked"),
        (
            format!("{header}{}{}", event(1, 4, "invoke"), event(2, 4, "invoke")),
            "event 1: process 4 asks while it waits for an answer",
        ),
        (
            format!("{header}{}{}", event(2, 0, "invoke"), event(1, 0, "ok")),
            "event 1: process 0 goes back in time",
        ),
    ] {
        let error: HistoryError = History::read(file.as_bytes()).expect_err(said);
        assert!(error.to_string().starts_with(said), "{error}");
    }
}

#[test]
fn edn_is_what_jepsen_reads() {
    let text = edn::write(&history("0 send 1 @q0:5\n5 recv g 1@q0:5\n1 cas x 3 4\n1 read x nil\n0 send- 2"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "{:index 0, :time 1000000, :process 0, :type :invoke, :f :enqueue, :value 1}");
    assert_eq!(
        lines[1],
        "{:index 1, :time 2000000, :process 0, :type :ok, :f :enqueue, :value 1, \
         :place [:send [\"group-1\" 0] [5 1]]}"
    );
    assert_eq!(
        lines[3],
        "{:index 3, :time 4000000, :process 5, :type :ok, :f :dequeue, :value [1], :group \"g\"}"
    );
    assert_eq!(lines[5], "{:index 5, :time 6000000, :process 1, :type :ok, :f :cas, :value [\"x\" [3 4]]}");
    assert_eq!(lines[7], "{:index 7, :time 8000000, :process 1, :type :ok, :f :read, :value [\"x\" nil]}");
    assert_eq!(lines[9], "{:index 9, :time 10000000, :process 0, :type :fail, :f :enqueue, :value 2}");
}
