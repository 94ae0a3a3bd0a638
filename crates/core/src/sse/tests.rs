use eventsource_stream::Eventsource;
use futures_util::{FutureExt, StreamExt, stream};
use proptest::prelude::*;

use super::*;

fn events(chunks: &[&[u8]]) -> (Vec<Event>, Bytes) {
    let mut decoder = Decoder::new(usize::MAX);
    let mut events = Vec::new();
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        while let Some(event) = decoder.next_event().unwrap() {
            events.push(event);
        }
    }
    (events, decoder.into_rest())
}

fn data(chunks: &[&[u8]]) -> Vec<String> {
    let (events, _) = events(chunks);
    events.iter().filter_map(Event::data).map(|data| String::from_utf8(data.into()).unwrap()).collect()
}

#[test]
fn every_line_end_ends_events() {
    for end in ["\n", "\r\n", "\r"] {
        let text = format!("data: a{end}{end}: hi{end}data:b{end}data{end}data:  c{end}{end}");
        assert_eq!(data(&[text.as_bytes()]), ["a", "b\n\n c"], "{end:?}");
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(data(&bytes), ["a", "b\n\n c"], "{end:?}, a byte at a time");
    }
}

#[test]
fn an_event_that_came_alone_is_not_held_back() {
    for text in ["data: a\n\n", "data: a\r\n\r\n", "data: a\r\r", "data: a\n\r\n", "data: a\r\n\n"] {
        assert_eq!(data(&[text.as_bytes()]), ["a"], "{text:?}");
        let mut aligner = Aligner::new(100);
        assert_eq!(aligner.push(text.into()).unwrap(), text);
        assert!(aligner.held().is_empty());
    }
}

#[test]
fn a_mixed_ending_waits_for_its_second_half() {
    let mut aligner = Aligner::new(100);
    assert_eq!(aligner.push("data: a\r\n\r".into()).unwrap(), "");
    assert_eq!(aligner.push("\ndata".into()).unwrap(), "data: a\r\n\r\n");
    assert_eq!(aligner.held(), b"data");

    let mut aligner = Aligner::new(100);
    assert_eq!(aligner.push("data: a\n\r".into()).unwrap(), "");
    assert_eq!(aligner.finish(), "data: a\n\r");
    assert_eq!(aligner.finish(), "");
}

#[test]
fn fields_as_the_standard_reads_them() {
    let (events, rest) = events(&[
        b"\xef\xbb\xbfdata:x\n\n",
        b"\xef\xbb\xbfdata:y\n\n",
        b"event: a\nevent: b\nid: 1\nid: 2\0\ndata\n\n",
        b": only a comment\n\n",
        b"dataset: no\nData: no\n\n",
        b"data: cut off",
    ]);
    assert_eq!(events[0].data().as_deref(), Some(&b"x"[..]), "a byte order mark is no field");
    assert_eq!(events[1].data(), None, "but only the first is one");
    assert_eq!((events[2].kind(), events[2].id()), ("b", Some(&b"1"[..])));
    assert_eq!(events[2].data().as_deref(), Some(&b""[..]));
    assert_eq!((events[3].kind(), events[3].data()), ("message", None));
    assert_eq!(events[4].data(), None);
    assert_eq!(events.len(), 5);
    assert_eq!(rest, "data: cut off");
}

#[test]
fn what_lies_in_one_chunk_is_not_copied() {
    let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
    let mut decoder = Decoder::new(100);
    decoder.push(chunk.clone());
    decoder.next_event().unwrap();
    let second = decoder.next_event().unwrap().unwrap();
    assert_eq!(second.raw().as_ptr(), chunk[9..].as_ptr());
    assert_eq!(second.data().unwrap().as_ptr(), chunk[15..].as_ptr());
    assert_eq!(Aligner::new(100).push(chunk.clone()).unwrap().as_ptr(), chunk.as_ptr());
}

#[test]
fn an_event_that_does_not_end_is_refused_at_the_bound() {
    let mut aligner = Aligner::new(10);
    assert_eq!(aligner.push("data: 345".into()).unwrap(), "");
    assert_eq!(
        aligner.push("6\n\ndata: 7890".into()).unwrap(),
        "data: 3456\n\n",
        "what is complete may be long"
    );
    assert_eq!(
        aligner.push("1".into()).unwrap_err().to_string(),
        "a server-sent event is longer than 10 bytes"
    );

    let mut aligner = Aligner::new(10);
    assert_eq!(
        aligner.push("data: 1\n\nxxxxxxxxxxxx".into()).unwrap(),
        "data: 1\n\n",
        "what is complete comes first"
    );
    assert!(aligner.push("\n\n".into()).is_err());

    let mut decoder = Decoder::new(10);
    decoder.push("data: 34567\n\n".into());
    assert!(decoder.next_event().is_err());
    assert_eq!(decoder.into_rest(), "data: 34567\n\n");
}

/// Streams out of the pieces that matter, and where to split them.
fn split_streams() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let piece = prop::sample::select(vec![
        "\n", "\r", "\r\n", "\n\n", "data", ":", " ", "data: x", "event: e", "id: 1", ": c", "é", "data:",
        "\u{feff}",
    ]);
    prop::collection::vec(piece, 0..40).prop_flat_map(|pieces| {
        let bytes = pieces.concat().into_bytes();
        let cuts = prop::collection::vec(0..=bytes.len(), 0..8);
        (Just(bytes), cuts)
    })
}

fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = [&[0], cuts, &[bytes.len()]].concat();
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_split_gives_the_same_events_and_the_same_bytes((bytes, cuts) in split_streams()) {
        let chunks = split(&bytes, &cuts);
        let (mut whole, _) = events(&[&bytes]);
        let (mut parts, rest) = events(&chunks);
        let together: Vec<u8> = parts.iter().flat_map(|event| event.raw().to_vec()).chain(rest).collect();
        prop_assert_eq!(&together, &bytes, "no byte is lost or moved");
        whole.retain(|event| event.data().is_some());
        parts.retain(|event| event.data().is_some());
        prop_assert_eq!(whole, parts);
    }

    #[test]
    fn the_aligner_cuts_where_the_decoder_does((bytes, cuts) in split_streams()) {
        let chunks = split(&bytes, &cuts);
        let mut aligner = Aligner::new(usize::MAX);
        let mut decoder = Decoder::new(usize::MAX);
        for chunk in chunks {
            let aligned = aligner.push(Bytes::copy_from_slice(chunk)).unwrap();
            decoder.push(Bytes::copy_from_slice(chunk));
            let mut decoded = Vec::new();
            while let Some(event) = decoder.next_event().unwrap() {
                decoded.extend_from_slice(event.raw());
            }
            prop_assert_eq!(aligned, decoded);
        }
        prop_assert_eq!(aligner.held(), decoder.into_rest());
    }

    #[test]
    fn data_and_kind_agree_with_eventsource_stream((bytes, cuts) in split_streams()) {
        // The oracle reads a lone `\r` and a second byte order mark otherwise than the standard does.
        let text = String::from_utf8(bytes).unwrap().replace(['\r', '\u{feff}'], "");
        let bytes = text.as_bytes();
        let cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        let chunks = split(bytes, &cuts);
        let source = stream::iter(chunks.iter().map(|chunk| Ok::<_, std::convert::Infallible>(*chunk)));
        let expected: Vec<(String, Vec<u8>)> = source
            .eventsource()
            .map(|event| event.map(|event| (event.event, event.data.into_bytes())).unwrap())
            .collect()
            .now_or_never()
            .unwrap();
        let (events, _) = events(&chunks);
        let ours: Vec<(String, Vec<u8>)> = events
            .iter()
            .filter_map(|event| Some((event.kind().to_owned(), event.data()?.to_vec())))
            .collect();
        prop_assert_eq!(ours, expected);
    }
}
