//! Prompts have the length, depth and number that were asked for.

use super::*;

/// All printable ASCII, a line end and a space in the byte-level alphabet: one token a byte.
fn tokenizer() -> Tokenizer {
    let letters: Vec<String> = (b'!'..=b'~').map(|byte| char::from(byte).to_string()).collect();
    let tokens: Vec<&str> = letters.iter().map(String::as_str).chain(["Ċ", "Ġ"]).collect();
    Tokenizer::new(&tokens, &[], "gpt-2").unwrap()
}

fn text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.decode(ids).unwrap()
}

#[test]
fn the_number_stands_at_its_depth_between_lines() {
    let tokenizer = tokenizer();
    let maker = PasskeyMaker::new(&tokenizer, None, "one line here\nanother\n", 7).unwrap();
    for (depth, least, most) in [(0.0, 0.0, 0.01), (0.5, 0.48, 0.52), (1.0, 0.99, 1.0)] {
        let passkey = maker.prompt(4000, depth, 7).unwrap();
        let length = passkey.text.len() + passkey.question.len();
        assert!((3986..=4000).contains(&length), "{length}");
        let text = text(&tokenizer, &passkey.text);
        let (_, hidden) = text.split_once("afterwards.\n").unwrap();
        let at = hidden.find("One of the special").unwrap();
        let needle = &hidden[at..hidden[at..].find('\n').unwrap() + at];
        assert!(needle.ends_with(&format!("is: {}.", passkey.number)), "{needle}");
        assert_eq!(text.matches(&passkey.number).count(), 1);
        let found = at as f64 / (hidden.len() - needle.len()) as f64;
        assert!((least..=most).contains(&found), "{found} at {depth}");
        assert!(at == 0 || hidden[..at].ends_with('\n'));
    }
}

#[test]
fn question_and_needle_agree_on_the_key_and_seeds_differ() {
    let tokenizer = tokenizer();
    let maker = PasskeyMaker::new(&tokenizer, None, FILLER, 7).unwrap();
    let prompts: Vec<Passkey> = (0..20).map(|seed| maker.prompt(1000, 0.3, seed).unwrap()).collect();
    let mut numbers: Vec<&str> = prompts.iter().map(|passkey| passkey.number.as_str()).collect();
    for passkey in &prompts {
        assert_eq!(passkey.number.len(), 7);
        let question = text(&tokenizer, &passkey.question);
        let key = question.split("number for ").nth(1).unwrap().split(' ').next().unwrap();
        assert!(
            text(&tokenizer, &passkey.text).contains(&format!("numbers for {key} is: {}.", passkey.number))
        );
        assert!(!question.contains(&passkey.number));
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 20);
    assert_eq!(maker.prompt(1000, 0.3, 4).unwrap(), prompts[4]);
    let short = PasskeyMaker::new(&tokenizer, None, FILLER, 1).unwrap();
    assert!((0..20).all(|seed| short.prompt(1000, 0.3, seed).unwrap().number.len() == 1));
}

#[test]
fn a_question_can_be_part_of_what_is_prefilled() {
    let tokenizer = tokenizer();
    let maker = PasskeyMaker::new(&tokenizer, None, FILLER, 7).unwrap();
    let asked = maker.prompt(1000, 0.3, 2).unwrap();
    let mut prefilled = asked.clone();
    prefilled.prefill_question();
    assert_eq!(prefilled.question, asked.question[asked.question.len() - 1..]);
    let whole = |passkey: &Passkey| [&*passkey.text, &*passkey.question].concat();
    assert_eq!(whole(&prefilled), whole(&asked));
}

#[test]
fn what_leaves_no_room_is_refused() {
    let tokenizer = tokenizer();
    assert!(matches!(PasskeyMaker::new(&tokenizer, None, "", 7), Err(Error::Value { .. })));
    let maker = PasskeyMaker::new(&tokenizer, None, FILLER, 7).unwrap();
    assert!(matches!(PasskeyMaker::new(&tokenizer, None, FILLER, 0), Err(Error::Value { .. })));
    assert!(matches!(maker.prompt(100, 0.5, 1), Err(Error::Value { .. })));
}
