//! The class that a prompt names.

use crate::server::ApiError;

/// The index of the class whose name stands in `prompt` as a whole word, in any mixture of ASCII capitals and small
/// letters. Where one name is part of another ("t-shirt"), the longer one is meant.
///
/// # Errors
/// [`ApiError::NoClass`] and [`ApiError::AmbiguousPrompt`].
pub(super) fn class_of(prompt: &str, classes: &[String]) -> Result<usize, ApiError> {
    let text = prompt.to_ascii_lowercase();
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        let name = name.to_ascii_lowercase();
        let starts = text.char_indices().map(|(start, _)| start).filter(|&start| text[start..].starts_with(&name));
        let spans = starts.map(|start| (start, start + name.len())).filter(|&(start, end)| is_word(&text, start, end));
        found.extend(spans.map(|(start, end)| (start, end, class)));
    }
    found.sort_unstable();
    let is_part = |&(start, end, _): &(usize, usize, usize)| {
        found.iter().any(|&(first, last, _)| first <= start && end <= last && end - start < last - first)
    };
    let mut named: Vec<usize> = Vec::new();
    for &(_, _, class) in found.iter().filter(|span| !is_part(span)) {
        if !named.contains(&class) {
            named.push(class);
        }
    }
    match named.as_slice() {
        [] => Err(ApiError::NoClass(classes.to_vec())),
        [class] => Ok(*class),
        several => Err(ApiError::AmbiguousPrompt(several.iter().map(|&class| classes[class].clone()).collect())),
    }
}

/// The characters that [`class_of`] takes for parts of words, as a set of a regular expression: Latin letters with or
/// without accents, and digits. Scripts without spaces are not among them: a class name is found inside their text.
const WORD: &str = "0-9A-Za-z\\u00c0-\\u024f";

fn is_word(text: &str, start: usize, end: usize) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || ('\u{c0}'..='\u{24f}').contains(&c);
    !text[..start].ends_with(is_letter) && !text[end..].starts_with(is_letter)
}

/// The regular expression (ECMA 262) of the prompts that name a class.
pub(in crate::server) fn pattern(classes: &[String]) -> String {
    let names: Vec<String> = classes.iter().map(|name| name.chars().map(either_case).collect()).collect();
    format!("(^|[^{WORD}])({})($|[^{WORD}])", names.join("|"))
}

fn either_case(c: char) -> String {
    match c {
        'a'..='z' | 'A'..='Z' => format!("[{}{}]", c.to_ascii_uppercase(), c.to_ascii_lowercase()),
        _ => quote(c),
    }
}

/// A character as a regular expression.
pub(in crate::server) fn quote(c: char) -> String {
    match c {
        '\\' | '^' | '$' | '.' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '/' => format!("\\{c}"),
        _ => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Vec<String> {
        ["t-shirt", "shirt", "bag", "ankle boot"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_class_is_found_alone_and_as_a_word_of_the_prompt_in_any_case() {
        for (prompt, class) in [
            ("shirt", "shirt"),
            ("a photo of a bag", "bag"),
            ("Bag, leather", "bag"),
            ("an ANKLE BOOT.", "ankle boot"),
            ("a t-shirt", "t-shirt"),
            ("T-Shirt", "t-shirt"),
            ("bag bag BAG", "bag"),
            ("“bag”", "bag"),
            ("一个bag", "bag"),
        ] {
            assert_eq!(class_of(prompt, &classes()).map(|class| classes()[class].clone()).unwrap(), class, "{prompt}");
        }
    }

    #[test]
    fn a_prompt_without_a_class_is_refused_with_the_accepted_ones() {
        for prompt in ["", "a dog", "bags", "handbag", "éshirt", "ankle  boot", "boot"] {
            let error = class_of(prompt, &classes()).unwrap_err();
            assert_eq!(error.contract().1, "unknown_class", "{prompt}");
            assert!(error.to_string().contains("t-shirt, shirt, bag, ankle boot"), "{error}");
        }
    }

    #[test]
    fn a_prompt_of_two_classes_is_refused_with_both() {
        for prompt in ["a shirt and a bag", "a bag, a t-shirt, a shirt"] {
            let error = class_of(prompt, &classes()).unwrap_err();
            assert_eq!(error.contract().1, "ambiguous_prompt", "{prompt}");
            assert!(error.to_string().contains("shirt") && error.to_string().contains("bag"), "{error}");
        }
    }

    #[test]
    fn the_pattern_spells_every_case_and_quotes_what_regular_expressions_mean() {
        let word = "[^0-9A-Za-z\\u00c0-\\u024f]";
        let expected = format!("(^|{word})([Aa]\\.1|[Bb] -)($|{word})");
        assert_eq!(pattern(&["a.1".to_owned(), "b -".to_owned()]), expected);
    }
}
