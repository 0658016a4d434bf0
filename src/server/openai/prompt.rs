//! The class that a prompt names.

use crate::labels;
use crate::server::ApiError;
use std::ops::RangeInclusive;
use unicode_normalization::char::is_combining_mark;

/// The index of the class whose name stands in `prompt` as words of their own, however both are spelled. Where one name is
/// part of another ("t-shirt"), the longer one is meant; a part of a compound ("handbag", "bag-pipe") is no word.
///
/// # Errors
/// [`ApiError::NoClass`] and [`ApiError::AmbiguousPrompt`].
pub(super) fn class_of(prompt: &str, classes: &[String]) -> Result<usize, ApiError> {
    let text: Vec<char> = labels::spelled(prompt).chars().collect();
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        let name: Vec<char> = labels::folded(name).chars().collect();
        let spans = text.windows(name.len().max(1)).enumerate().filter(|(_, part)| reads(part, &name));
        let spans = spans.map(|(start, part)| (start, start + part.len()));
        found.extend(spans.filter(|&(start, end)| is_whole(&text, start, end)).map(|(start, end)| (start, end, class)));
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

/// Whether a part of a text is a name, whose separators are spaces.
fn reads(part: &[char], name: &[char]) -> bool {
    part.len() == name.len() && part.iter().zip(name).all(|(c, of)| c == of || (*c == '-' && *of == ' '))
}

/// Whether the words of a span end at both of its ends.
fn is_whole(text: &[char], start: usize, end: usize) -> bool {
    !goes_on(text[..start].iter().rev()) && !goes_on(text[end..].iter())
}

/// Whether a word goes on into `rest`, itself or as a part of a compound.
fn goes_on<'a>(mut rest: impl Iterator<Item = &'a char>) -> bool {
    match rest.next() {
        Some('-') => rest.next().is_some_and(is_letter),
        next => next.is_some_and(is_letter),
    }
}

/// Scripts that are written without spaces, or (Korean) with particles at their words: a class is found inside their text.
const WITHOUT_SPACES: [RangeInclusive<char>; 8] = [
    '\u{e00}'..='\u{109f}',
    '\u{1780}'..='\u{17ff}',
    '\u{1950}'..='\u{19ff}',
    '\u{1a20}'..='\u{1aaf}',
    '\u{2e80}'..='\u{a4cf}',
    '\u{ac00}'..='\u{d7ff}',
    '\u{f900}'..='\u{faff}',
    '\u{20000}'..='\u{3ffff}',
];

fn is_letter(c: &char) -> bool {
    (c.is_alphanumeric() || is_combining_mark(*c)) && !WITHOUT_SPACES.iter().any(|script| script.contains(c))
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
            ("bag's", "bag"),
            ("a bag\u{2014}leather", "bag"),
            ("a red t\u{2010}shirt", "t-shirt"),
            ("T\u{2011}SHIRT", "t-shirt"),
            ("a t shirt", "t-shirt"),
            ("t_shirt", "t-shirt"),
            ("t \u{2013} shirt", "t-shirt"),
            ("t\u{2014}shirt", "t-shirt"),
            ("a ｔ－ｓｈｉｒｔ", "t-shirt"),
            ("\u{feff}an\u{a0}Ankle\u{a0}\u{3000}Boot", "ankle boot"),
            ("ankle-boot", "ankle boot"),
            ("ein Rucksack, cafe\u{301}-braun, und ein BAG", "bag"),
        ] {
            assert_eq!(class_of(prompt, &classes()).map(|class| classes()[class].clone()).unwrap(), class, "{prompt}");
        }
    }

    #[test]
    fn a_prompt_without_a_class_is_refused_with_the_accepted_ones() {
        for prompt in [
            "",
            "-",
            "a dog",
            "bags",
            "handbag",
            "bag2",
            "éshirt",
            "шbag",
            "shirt\u{301}",
            "boot",
            "bag-pipe",
            "bag_pipe",
            "over\u{2010}shirt",
            "ankle-boot-shirt",
            "tshirt",
            "t\u{ad}shirt",
        ] {
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
    fn a_class_is_found_inside_a_text_without_spaces_and_its_own_name_may_be_in_any_script() {
        let classes = ["包", "сумка", "-"].map(str::to_owned);
        assert_eq!(class_of("一个手提包的照片", &classes).unwrap(), 0);
        assert_eq!(class_of("красная СУМКА", &classes).unwrap(), 1);
        assert!(class_of("сумками", &classes).is_err() && class_of("a - b", &classes).is_err());
    }

    #[test]
    fn names_that_read_the_same_are_ambiguous_in_a_prompt() {
        let classes = ["T-Shirt", "t shirt"].map(str::to_owned);
        assert_eq!(class_of("a t-shirt", &classes).unwrap_err().contract().1, "ambiguous_prompt");
    }
}
