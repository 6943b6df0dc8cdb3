//! One line of a script, taken apart: `command name key=value flag`.

use std::cell::RefCell;
use std::str::FromStr;

/// See the module's text. What is asked for is crossed off; [`Words::end`] refuses what is left.
pub(crate) struct Words<'a> {
    line: &'a str,
    left: RefCell<Vec<&'a str>>,
}

impl<'a> Words<'a> {
    pub(crate) fn new(line: &'a str) -> Self {
        let left = RefCell::new(line.split_whitespace().collect());
        Self { line, left }
    }

    /// The next word without a `=`.
    pub(crate) fn word(&self) -> &'a str {
        self.try_word()
            .unwrap_or_else(|| panic!("`{}`: a word is missing", self.line))
    }

    pub(crate) fn try_word(&self) -> Option<&'a str> {
        self.take(|word| !word.contains('='))
    }

    /// Whether the word stands there.
    pub(crate) fn flag(&self, flag: &str) -> bool {
        self.take(|word| word == flag).is_some()
    }

    /// The value of `key=value`.
    pub(crate) fn get<T: FromStr>(&self, key: &str) -> Option<T> {
        let word = self.take(|word| word.split_once('=').is_some_and(|(name, _)| name == key))?;
        let value = word.split_once('=')?.1.parse();
        Some(value.unwrap_or_else(|_| panic!("`{}`: `{word}` has no value of the kind", self.line)))
    }

    pub(crate) fn need<T: FromStr>(&self, key: &str) -> T {
        self.get(key)
            .unwrap_or_else(|| panic!("`{}`: {key}= is missing", self.line))
    }

    pub(crate) fn number(&self, key: &str) -> u64 {
        self.get(key).unwrap_or(0)
    }

    /// Refuses words that nobody asked for.
    pub(crate) fn end(&self) {
        let left = self.left.borrow();
        assert!(
            left.is_empty(),
            "`{}`: {left:?} is not understood",
            self.line
        );
    }

    fn take(&self, matches: impl Fn(&str) -> bool) -> Option<&'a str> {
        let mut left = self.left.borrow_mut();
        let at = left.iter().position(|word| matches(word))?;
        Some(left.remove(at))
    }
}
