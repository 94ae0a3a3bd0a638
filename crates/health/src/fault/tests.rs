use std::io::{Error as Io, ErrorKind};

use bartizan_core::RejectionKind;

use super::*;

fn explained(error: &(dyn Error + 'static)) -> (&'static str, String) {
    let fault = Explain::<()>::explain(&causes(), Err(error)).unwrap();
    (fault.class(), fault.to_string())
}

#[tokio::test(start_paused = true)]
async fn errors_have_the_class_of_what_is_in_them() {
    let elapsed = tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(explained(&elapsed), ("timeout", "deadline has elapsed".to_owned()));
    assert_eq!(explained(&Io::from(ErrorKind::TimedOut)).0, "timeout");
    assert_eq!(explained(&Io::other(Io::other(elapsed))).0, "timeout");
    assert_eq!(explained(&Io::from(ErrorKind::ConnectionReset)).0, "io");
    assert_eq!(explained(&"7 7".parse::<u8>().unwrap_err()).0, "error");
    let refused = Io::other(Rejected::new(RejectionKind::RateLimited, "rate-limit"));
    assert_eq!(explained(&refused).0, "refused");
    assert!(Explain::<u8>::explain(&causes(), Ok(&7)).is_none());
}

#[test]
fn more_classes_than_there_is_room_for() {
    const WORDS: &str = "0123456789abcdefghijklmnopqrstuvwxyz";
    let classes = Classes::new();
    for n in 0..36 {
        (0..=n).for_each(|_| classes.count(&WORDS[n..=n]));
    }
    let all = classes.all();
    assert_eq!(
        (all.len(), all[0], all[30], all[31]),
        (32, ("0", 1), ("u", 31), ("other", 32 + 33 + 34 + 35 + 36))
    );
}

#[test]
fn words_are_cut_between_characters() {
    for before in 0..5 {
        let long = format!("{}{}", "x".repeat(before), "ü🗼".repeat(100));
        let text = Text::of(&long);
        let last = Last::new();
        last.write(&text, 7);
        let (read, at) = last.read().unwrap();
        assert!(long.starts_with(&read) && read.len() > BYTES - 4 && read.len() <= BYTES, "{read}");
        assert_eq!(at, 7);
    }
    let last = Last::new();
    assert_eq!(last.read(), None);
    last.write(&Text::of(&"a longer text than the next one"), 1);
    last.write(&Text::of(&""), 2);
    assert_eq!(last.read(), Some((String::new(), 2)));
}

/// A `Display` that goes on when it was told that there is no room.
#[test]
fn whoever_ignores_that_it_is_full_does_no_harm() {
    struct Stubborn;
    impl Display for Stubborn {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            (0..1_000).for_each(|_| _ = f.write_str("123456789"));
            Err(fmt::Error)
        }
    }
    assert_eq!(Text::of(&Stubborn).length, BYTES / 9 * 9 + BYTES % 9);
}

#[test]
fn readers_see_whole_words_while_threads_write() {
    let last = Last::new();
    std::thread::scope(|scope| {
        for who in ["a", "bb"] {
            let last = &last;
            scope.spawn(move || {
                let text = Text::of(&who.repeat(50));
                (0..20_000).for_each(|at| last.write(&text, at));
            });
        }
        for _ in 0..20_000 {
            if let Some((read, _)) = last.read() {
                assert!(read == "a".repeat(50) || read == "bb".repeat(50), "{read}");
            }
        }
    });
    assert!(last.read().is_some());
}
