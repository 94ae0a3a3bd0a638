//! Every interleaving of those who write the last error and those who read it.

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
