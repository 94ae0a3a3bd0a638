//! Every interleaving of those who write the last error, those who read it, and those who count classes.

use loom::{sync::Arc, thread};

use super::*;

#[test]
fn what_is_read_was_written_by_one() {
    loom::model(|| {
        let last = Arc::new(Last::new());
        let write = |text: &'static str, at: u64| {
            let last = last.clone();
            thread::spawn(move || last.write(&Text::of(&text), at))
        };
        let writers = [write("one", 1), write("three", 3)];
        let known = |read: Option<(String, u64)>| {
            let read = read?;
            assert!(read == ("one".to_owned(), 1) || read == ("three".to_owned(), 3), "{read:?}");
            Some(read)
        };
        known(last.read());
        for writer in writers {
            writer.join().unwrap();
        }
        assert!(known(last.read()).is_some(), "one of them was written");
    });
}

fn counts(classes: &Arc<Classes>, class: &'static str) -> thread::JoinHandle<()> {
    let classes = classes.clone();
    thread::spawn(move || classes.count(class))
}

/// Two new classes and one of them twice, at once: each has its slot, and every one is counted.
#[test]
fn classes_that_come_for_the_first_time() {
    loom::model(|| {
        let classes = Arc::new(Classes::new());
        let threads = ["one", "two"].map(|class| counts(&classes, class));
        classes.count("one");
        for thread in threads {
            thread.join().unwrap();
        }
        let mut all = classes.all();
        all.sort_unstable();
        assert_eq!(all, [("one", 2), ("two", 1)]);
    });
}

/// More than there is room for: what has no slot is counted with the others.
#[test]
fn more_classes_than_slots() {
    loom::model(|| {
        let classes = Arc::new(Classes::new());
        let threads = ["one", "two"].map(|class| counts(&classes, class));
        classes.count("three");
        for thread in threads {
            thread.join().unwrap();
        }
        let all = classes.all();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|(_, count)| *count == 1), "{all:?}");
        assert_eq!(all[2].0, "other");
    });
}
