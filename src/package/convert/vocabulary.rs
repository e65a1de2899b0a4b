//! Builds `tokenizer.json` from the `vocab.txt` of a BERT, for directories that were made before
//! that file existed.
//!
//! The result is the tokenizer that the `BertTokenizerFast` of transformers makes of the same
//! files: <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/convert_slow_tokenizer.py>.
//! A setting that this tokenizer does not have is an error.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::file::{
    ModelDirectoryError, is_missing, parse, quoted, read_file, read_json_if_present, unsupported,
};
use crate::package::manifest::MAX_JSON;

/// File of the words, one a line. The number of the line is the id.
const VOCABULARY: &str = "vocab.txt";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Maximum size of the vocabulary in bytes. The one of LaBSE (501,153 words) has 5 MB.
const MAX_VOCABULARY: u64 = 16 << 20;
/// Maximum number of words of a tokenizer that is built here or from a GGUF file. A word takes some
/// hundred bytes while the tokenizer is built.
pub(super) const MAX_WORDS: usize = 1 << 20;

/// Classes of transformers whose vocabulary is that of BERT.
const CLASSES: [&str; 4] =
    ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"];
/// Values of `model_type` whose tokenizer is one of [`CLASSES`] if no file names the class.
const MODEL_TYPES: [&str; 2] = ["bert", "distilbert"];

/// Token with its settings, or only its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Text(String),
    Settings { content: String },
}

impl NamedToken {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Settings { content: text } => text,
        }
    }
}

/// Names of the special tokens, in `tokenizer_config.json` or `special_tokens_map.json`.
#[derive(Default, Deserialize)]
struct SpecialTokens {
    unk_token: Option<NamedToken>,
    sep_token: Option<NamedToken>,
    pad_token: Option<NamedToken>,
    cls_token: Option<NamedToken>,
    mask_token: Option<NamedToken>,
    additional_special_tokens: Option<Vec<NamedToken>>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    tokenizer_class: Option<String>,
    do_lower_case: Option<bool>,
    do_basic_tokenize: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
    added_tokens_decoder: Option<BTreeMap<String, NamedToken>>,
    #[serde(flatten)]
    special: SpecialTokens,
}

/// Builds the tokenizer of the directory `root` with the given `model_type`. Returns `None` if the
/// directory has no vocabulary of a BERT.
///
/// # Errors
/// When a file cannot be read, or asks for a tokenizer that is not the one of BERT.
pub(super) fn build_tokenizer(
    root: &Path,
    model_type: &str,
) -> Result<Option<Vec<u8>>, ModelDirectoryError> {
    let path = root.join(VOCABULARY);
    let config_path = root.join(TOKENIZER_CONFIG);
    let config: TokenizerConfig = read_json_if_present(&config_path)?.unwrap_or_default();
    let is_bert = match &config.tokenizer_class {
        Some(class) => CLASSES.contains(&class.as_str()),
        None => MODEL_TYPES.contains(&model_type),
    };
    if !is_bert {
        return Ok(None);
    }
    let bytes = match read_file(&path, MAX_VOCABULARY) {
        Err(error) if is_missing(&error) => return Ok(None),
        other => other?,
    };
    let words = read_words(&path, bytes)?;
    if config.do_basic_tokenize == Some(false) {
        return Err(unsupported(
            &config_path,
            "do_basic_tokenize is false; only true is supported",
        ));
    }
    let lowercase = lowercases(&config_path, &config, &words)?;
    let (chinese, accents) = (config.tokenize_chinese_chars, config.strip_accents);
    let special = Special::read(root, config, &words)?;
    let parts = Parts {
        added_tokens: special.added_tokens(),
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": chinese.unwrap_or(true),
            "strip_accents": accents,
            "lowercase": lowercase,
        }),
        pre_tokenizer: json!({ "type": "BertPreTokenizer" }),
        post_processor: special.post_processor(),
        decoder: json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        model: json!({
            "type": "WordPiece",
            "unk_token": special.unknown.0,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": words.into_iter().map(|(word, id)| (word, id.into())).collect::<Map<_, _>>(),
        }),
    };
    Ok(Some(parts.into_json()))
}

/// Reads the words with their ids. Of two equal words, the second one counts, as in transformers.
fn read_words(path: &Path, bytes: Vec<u8>) -> Result<BTreeMap<String, u32>, ModelDirectoryError> {
    let text = String::from_utf8(bytes).map_err(|_cause| unsupported(path, "it is not UTF-8"))?;
    // Python reads each of these as the end of a line.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    if lines.clone().nth(MAX_WORDS).is_some() {
        return Err(unsupported(path, format!("it has more than {MAX_WORDS} words")));
    }
    Ok(lines.map(str::to_owned).zip(0..).collect())
}

/// Returns whether the tokenizer turns capitals into small letters.
///
/// transformers does so unless `do_lower_case` is false. A vocabulary with capitals contradicts
/// this, because its words could never be found.
fn lowercases(
    path: &Path,
    config: &TokenizerConfig,
    words: &BTreeMap<String, u32>,
) -> Result<bool, ModelDirectoryError> {
    if let Some(lowercase) = config.do_lower_case {
        return Ok(lowercase);
    }
    let has_capital =
        |word: &&String| !word.starts_with('[') && word.chars().any(|c| c.is_ascii_uppercase());
    match words.keys().find(has_capital) {
        None => Ok(true),
        Some(word) => Err(unsupported(
            path,
            format!(
                "do_lower_case is missing, and {VOCABULARY} has {}, so it is unknown whether the \
                 tokenizer keeps capitals; add do_lower_case (the model card states whether the \
                 model is cased)",
                quoted(word)
            ),
        )),
    }
}

/// Special tokens with their ids.
struct Special {
    padding: (String, u32),
    unknown: (String, u32),
    first: (String, u32),
    separator: (String, u32),
    mask: (String, u32),
}

impl Special {
    /// Reads the names of the special tokens and looks up their ids.
    fn read(
        root: &Path,
        config: TokenizerConfig,
        words: &BTreeMap<String, u32>,
    ) -> Result<Self, ModelDirectoryError> {
        let map: SpecialTokens =
            read_json_if_present(&root.join("special_tokens_map.json"))?.unwrap_or_default();
        let find = |configured: Option<NamedToken>, mapped: Option<NamedToken>, usual: &str| {
            let name =
                configured.or(mapped).map_or_else(|| usual.to_owned(), NamedToken::into_text);
            match words.get(&name) {
                Some(id) => Ok((name, *id)),
                None => Err(unsupported(
                    &root.join(VOCABULARY),
                    format!("the special token {} is missing", quoted(&name)),
                )),
            }
        };
        let configured = config.special;
        let special = Self {
            padding: find(configured.pad_token, map.pad_token, "[PAD]")?,
            unknown: find(configured.unk_token, map.unk_token, "[UNK]")?,
            first: find(configured.cls_token, map.cls_token, "[CLS]")?,
            separator: find(configured.sep_token, map.sep_token, "[SEP]")?,
            mask: find(configured.mask_token, map.mask_token, "[MASK]")?,
        };
        let lists = [configured.additional_special_tokens, map.additional_special_tokens];
        let others = lists.into_iter().flatten().flatten();
        let others = others.chain(config.added_tokens_decoder.into_iter().flatten().map(|it| it.1));
        special.check_others(root, others.map(NamedToken::into_text))?;
        Ok(special)
    }

    fn all(&self) -> [&(String, u32); 5] {
        [&self.padding, &self.unknown, &self.first, &self.separator, &self.mask]
    }

    /// Checks that `others` and `added_tokens.json` have no further tokens.
    fn check_others(
        &self,
        root: &Path,
        others: impl Iterator<Item = String>,
    ) -> Result<(), ModelDirectoryError> {
        let path = root.join("added_tokens.json");
        let added = match read_file(&path, MAX_JSON) {
            Err(error) if is_missing(&error) => BTreeMap::new(),
            other => parse::<BTreeMap<String, Value>>(&path, &other?)?,
        };
        let is_further = |name: &String| self.all().iter().all(|(special, _)| special != name);
        match added.into_keys().chain(others).find(is_further) {
            None => Ok(()),
            Some(name) => Err(unsupported(
                &path,
                format!(
                    "the tokenizer has the further token {}, for which {VOCABULARY} is not \
                     enough; load the model with transformers and save its fast tokenizer \
                     (AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY))",
                    quoted(&name)
                ),
            )),
        }
    }

    fn added_tokens(&self) -> Vec<Value> {
        let mut tokens = self.all();
        tokens.sort_by_key(|(_, id)| *id);
        tokens.into_iter().map(|(content, id)| added_token(content, *id, true)).collect()
    }

    fn post_processor(&self) -> Value {
        template(Some((&self.first.0, self.first.1)), Some((&self.separator.0, self.separator.1)))
    }
}

/// Parts of a `tokenizer.json`.
pub(super) struct Parts {
    pub(super) added_tokens: Vec<Value>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
}

impl Parts {
    /// Returns the content of the file.
    pub(super) fn into_json(self) -> Vec<u8> {
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor,
            "decoder": self.decoder,
            "model": self.model,
        });
        tokenizer.to_string().into_bytes()
    }
}

/// Returns a token that is found in a text before it is divided into words.
pub(super) fn added_token(content: &str, id: u32, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// Returns the template `FIRST A LAST`, and for a pair `FIRST A LAST B LAST`, with special tokens
/// that are given by name and id.
pub(super) fn template(first: Option<(&str, u32)>, last: Option<(&str, u32)>) -> Value {
    let special = |(name, _): (&str, u32), type_id: u32| json!({ "SpecialToken": { "id": name, "type_id": type_id } });
    let text = |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
    let mut single = Vec::from_iter(first.map(|token| special(token, 0)));
    single.push(text("A", 0));
    single.extend(last.map(|token| special(token, 0)));
    let mut pair = single.clone();
    pair.push(text("B", 1));
    pair.extend(last.map(|token| special(token, 1)));
    let ids = first
        .into_iter()
        .chain(last)
        .map(|(name, id)| (name.to_owned(), json!({ "id": name, "ids": [id], "tokens": [name] })));
    json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": Map::from_iter(ids),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::package::directory_fixture::write_json;

    const WORDS: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n##s\n";

    fn directory(words: &str, config: &Value) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(VOCABULARY), words).unwrap();
        write_json(directory.path(), TOKENIZER_CONFIG, config);
        directory
    }

    fn build(words: &str, config: &Value) -> Result<Value, String> {
        let directory = directory(words, config);
        let built = build_tokenizer(directory.path(), "bert").map_err(|error| error.to_string())?;
        Ok(serde_json::from_slice(&built.unwrap()).unwrap())
    }

    #[test]
    fn settings_become_the_normalizer() {
        let built = build(WORDS, &json!({})).unwrap();
        let plain = json!({
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true,
        });
        assert_eq!(built["normalizer"], plain);
        assert_eq!(built["model"]["vocab"]["##s"], 6);
        assert_eq!(built["added_tokens"][3]["content"], "[SEP]");
        let config = json!({
            "do_lower_case": false, "tokenize_chinese_chars": false, "strip_accents": true,
        });
        let built = build(WORDS, &config).unwrap();
        let normalizer = &built["normalizer"];
        assert_eq!(normalizer["lowercase"], false);
        assert_eq!(normalizer["handle_chinese_chars"], false);
        assert_eq!(normalizer["strip_accents"], true);
    }

    #[test]
    fn special_tokens_may_have_other_names() {
        let words = WORDS.replace("[CLS]", "<first>");
        let config = json!({ "cls_token": { "content": "<first>", "lstrip": false } });
        let built = build(&words, &config).unwrap();
        let single = &built["post_processor"]["single"];
        assert_eq!(single[0]["SpecialToken"]["id"], "<first>");
        assert_eq!(built["post_processor"]["special_tokens"]["<first>"]["ids"][0], 2);
        let message = build(&words, &json!({})).unwrap_err();
        assert!(message.contains("[CLS]"), "{message}");
    }

    #[test]
    fn lines_end_as_in_python_and_last_of_equal_words_counts() {
        let built = build(&format!("{}hello", WORDS.replace('\n', "\r\n")), &json!({})).unwrap();
        assert_eq!(built["model"]["vocab"]["hello"], 7);
        assert_eq!(built["model"]["vocab"].as_object().unwrap().len(), 7);
    }

    #[test]
    fn other_tokenizers_are_refused() {
        for (words, config, part) in [
            (WORDS, json!({ "do_basic_tokenize": false }), "do_basic_tokenize"),
            (WORDS, json!({ "additional_special_tokens": ["<user>"] }), "<user>"),
            (WORDS, json!({ "added_tokens_decoder": { "9": { "content": "<x>" } } }), "<x>"),
            ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nHello\n", json!({}), "do_lower_case is missing"),
            ("", json!({}), "[PAD]"),
        ] {
            let message = build(words, &config).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        let message = build(&"\n".repeat(MAX_WORDS + 1), &json!({})).unwrap_err();
        assert!(message.contains("more than 1048576 words"), "{message}");
        let added = directory(WORDS, &json!({}));
        write_json(added.path(), "added_tokens.json", &json!({ "<user>": 7 }));
        let message = build_tokenizer(added.path(), "bert").unwrap_err().to_string();
        assert!(message.contains("<user>") && message.contains("save_pretrained"), "{message}");
    }

    #[test]
    fn only_the_vocabulary_of_a_bert_is_used() {
        let bert = directory(WORDS, &json!({}));
        assert!(build_tokenizer(bert.path(), "mpnet").unwrap().is_none());
        let japanese = directory(WORDS, &json!({ "tokenizer_class": "BertJapaneseTokenizer" }));
        assert!(build_tokenizer(japanese.path(), "bert").unwrap().is_none());
        let named = directory(WORDS, &json!({ "tokenizer_class": "BertTokenizer" }));
        assert!(build_tokenizer(named.path(), "nomic_bert").unwrap().is_some());
        fs::remove_file(bert.path().join(VOCABULARY)).unwrap();
        assert!(build_tokenizer(bert.path(), "bert").unwrap().is_none());
    }
}
