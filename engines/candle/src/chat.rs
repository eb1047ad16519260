//! The chat format that an instruct model was trained on: ChatML.

use crate::{ModelFile, Result, Tokenizer};

const START: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

/// How a model's conversations look, as far as one question and its answer go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    start: u32,
    end: u32,
    /// What the template says to the model where the user gives no system message.
    system: Option<String>,
}

impl ChatFormat {
    /// The format of a model file; `None` where its template is not ChatML, or its vocabulary lacks the marks.
    #[must_use]
    pub fn of(file: &ModelFile, tokenizer: &Tokenizer) -> Option<Self> {
        Self::from_template(file.string("tokenizer.chat_template").ok()?, tokenizer)
    }

    fn from_template(template: &str, tokenizer: &Tokenizer) -> Option<Self> {
        if !template.contains(START) {
            return None;
        }
        let opening = format!("{START}system\n");
        let system = template.split_once(&opening).and_then(|(_, rest)| rest.split_once(END));
        // What is put together by the template's code is no default message.
        let system = system.map(|(text, _)| text).filter(|text| !text.contains(['\'', '{']));
        Some(Self { start: tokenizer.id(START)?, end: tokenizer.id(END)?, system: system.map(str::to_owned) })
    }

    /// The mark that ends a message.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.end
    }

    /// What stands before the user's message.
    ///
    /// # Errors
    /// If the tokenizer library fails.
    pub fn before_user(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        if let Some(system) = &self.system {
            ids.push(self.start);
            ids.extend(tokenizer.encode(&format!("system\n{system}"))?);
            ids.push(self.end);
            ids.extend(tokenizer.encode("\n")?);
        }
        ids.push(self.start);
        ids.extend(tokenizer.encode("user\n")?);
        Ok(ids)
    }

    /// What stands between the user's message and the model's.
    ///
    /// # Errors
    /// If the tokenizer library fails.
    pub fn before_answer(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = vec![self.end];
        ids.extend(tokenizer.encode("\n")?);
        ids.push(self.start);
        ids.extend(tokenizer.encode("assistant\n")?);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        // The byte-level alphabet writes a line end as Ċ.
        let letters = ["a", "e", "i", "m", "n", "r", "s", "t", "u", "y", "b", "Ċ", END, START];
        Tokenizer::new(&letters, &[], "gpt-2").unwrap()
    }

    #[test]
    fn marks_are_single_tokens_and_the_default_message_comes_first() {
        let tokenizer = tokenizer();
        let template =
            format!("{{% if x %}}{{{{ '{START}system\nbe{END}\n' }}}}{{% endif %}}{{{{'{START}' + role}}}}");
        let chat = ChatFormat::from_template(&template, &tokenizer).unwrap();
        let expected =
            [vec![13], tokenizer.encode("system\nbe").unwrap(), vec![12, 11, 13, 8, 6, 1, 5, 11]].concat();
        assert_eq!(chat.before_user(&tokenizer).unwrap(), expected);
        let assistant = tokenizer.encode("assistant\n").unwrap();
        assert_eq!(chat.before_answer(&tokenizer).unwrap(), [&[12, 11, 13], &*assistant].concat());
        assert_eq!(chat.end(), 12);
    }

    #[test]
    fn templates_without_a_default_message_have_none_and_others_are_not_known() {
        let tokenizer = tokenizer();
        let template = format!("{{{{'{START}system\n' + content + '{END}'}}}}");
        let chat = ChatFormat::from_template(&template, &tokenizer).unwrap();
        assert_eq!(chat.before_user(&tokenizer).unwrap(), [13, 8, 6, 1, 5, 11]);
        assert_eq!(ChatFormat::from_template("[INST] {{ content }} [/INST]", &tokenizer), None);
        let without_marks = Tokenizer::new(&["a", "b"], &[], "gpt-2").unwrap();
        assert_eq!(ChatFormat::from_template(&template, &without_marks), None);
    }
}
