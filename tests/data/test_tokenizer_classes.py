"""Tokenizer classes and their settings: the ids and types of transformers over the same folder, or a refusal."""

from __future__ import annotations

import json
import logging
import shutil
import string
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from qdq.data.text import TextSample, encode_batches, read_samples, sample_text
from qdq.data.tokenizer import load_encoder, load_tokenizer
from qdq.data.tokenizer_classes import FOLLOWED, REFUSED
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_letters, *(f"##{letter}" for letter in string.ascii_letters)]
WORDS = [*LETTERS, "the", "cat", "dog", "The", "Cat", "é", "##é", "東", "京", "##京", *".,![]<>/"]
BERT = [*SPECIAL, *WORDS]
MPNET = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>", *WORDS]
PAIRS_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

TEXTS = (
    "the cat.",
    "The Cat, élan! ÉLAN",
    "東京the 東 京",
    "a [MASK] b [NEW] c",
    "a  <mask> the</s>dog [CLS] x <s>",
    " new [new] NEW ",
    "the <new> cat<new>dog",
    "tab\tx\r\ny",
    "",
    "x" * 120,
)
PAIRS = [(one, two) for one, two in zip(TEXTS, reversed(TEXTS), strict=True) if two]


def put(folder: Path, **documents: Any) -> Path:
    """Write JSON files; the name of each is that of the argument."""
    folder.mkdir(exist_ok=True)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document), "utf-8")
    return folder


def bert_folder(folder: Path, settings: dict[str, Any] | None = None, *, vocabulary: list[str] | None = None) -> Path:
    """A folder of BERT with ``vocab.txt``, and ``tokenizer_config.json`` if there are settings."""
    documents = {} if settings is None else {"tokenizer_config": settings}
    put(folder, config={"model_type": "bert", "type_vocab_size": 2}, **documents)
    (folder / "vocab.txt").write_text("\n".join(BERT if vocabulary is None else vocabulary) + "\n", "utf-8")
    return folder


def word_pieces(vocabulary: list[str], *, lowercase: bool, frame: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = frame
    tokenizer.add_special_tokens([token for token in (*SPECIAL, *PAIRS_SPECIAL) if token in vocabulary])
    return tokenizer


def bert_json(*, lowercase: bool = False) -> Tokenizer:
    frame = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return word_pieces(BERT, lowercase=lowercase, frame=frame)


def differing(folder: Path) -> list[Any]:
    """The inputs of which transformers gives other ids or types; one without types means types of 0."""
    reference, tokenizer = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    found: list[Any] = []
    for given in (*((text,) for text in TEXTS), *PAIRS):
        encoding, expected = tokenizer.encode(*given), reference(*given)
        types = expected.get("token_type_ids", [0] * len(expected["input_ids"]))
        if (encoding.ids, encoding.type_ids) != (expected["input_ids"], types):
            found.append(given)
    return found


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


def decoder(*added: dict[str, Any]) -> dict[str, Any]:
    """``added_tokens_decoder`` of BERT's special tokens and further ones."""
    entries = {str(index): token(content) for index, content in enumerate(SPECIAL)}
    return entries | {str(len(BERT) + number): entry for number, entry in enumerate(added)}


SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "fast": {"tokenizer_class": "BertTokenizerFast"},
    "distilbert": {"tokenizer_class": "DistilBertTokenizer"},
    "electra": {"tokenizer_class": "ElectraTokenizerFast"},
    "dpr": {"tokenizer_class": "DPRQuestionEncoderTokenizer"},
    "cased": {"do_lower_case": False},
    "accents": {"do_lower_case": True, "strip_accents": False},
    "stripped": {"do_lower_case": False, "strip_accents": True},
    "chinese": {"tokenize_chinese_chars": False},
    "never-split": {"never_split": ["[NEW]"], "do_basic_tokenize": False},
    "additional": {"additional_special_tokens": ["[NEW]"]},
    "additional-flags": {"additional_special_tokens": [{"__type": "AddedToken", **token("<new>", lstrip=True)}]},
    "extra": {"extra_special_tokens": {"ent_token": "[NEW]"}},
    "no-types": {"model_input_names": ["input_ids", "attention_mask"]},
    "types": {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    "decoder": {"added_tokens_decoder": decoder(token("[NEW]"))},
    "decoder-words": {"added_tokens_decoder": decoder(token("new", special=False, normalized=True), token("<new>"))},
    "begin-end": {"bos_token": "<s>", "eos_token": "</s>"},
    "split-special": {"split_special_tokens": True},
    "other-fields": {"clean_up_tokenization_spaces": False, "add_prefix_space": True, "wordpieces_prefix": "@@"},
}


class TestBert:
    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
    def test_vocabulary(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        assert differing(bert_folder(tmp_path / "model", {"tokenizer_class": "BertTokenizer", **settings})) == []

    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
    @pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
    def test_tokenizer_json(self, tmp_path: Path, settings: dict[str, Any], lowercase: bool) -> None:
        document = {"tokenizer_class": "BertTokenizer", **settings}
        folder = put(tmp_path / "model", config={"model_type": "bert"}, tokenizer_config=document)
        bert_json(lowercase=lowercase).save(str(folder / "tokenizer.json"))
        assert differing(folder) == []

    def test_the_class_may_stand_in_the_model_configuration(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "model", {"do_lower_case": False})
        put(folder, config={"model_type": "bert", "tokenizer_class": "DistilBertTokenizer"})
        assert differing(folder) == []
        assert not any(load_tokenizer(folder).encode("a", "b").type_ids)

    @pytest.mark.parametrize(
        "files",
        [
            {"added_tokens": {"[NEW]": len(BERT)}},
            {"added_tokens": {"NEW": len(BERT), "<new>": len(BERT) + 1}},
            {"special_tokens_map": {"additional_special_tokens": ["[NEW]"]}},
            {
                "added_tokens": {"<new>": len(BERT)},
                "special_tokens_map": {"additional_special_tokens": ["<new>"], "mask_token": token("[MASK]")},
            },
        ],
        ids=["added", "two", "map", "both"],
    )
    @pytest.mark.parametrize("as_json", [True, False], ids=["json", "vocabulary"])
    def test_files_beside(self, tmp_path: Path, files: dict[str, Any], as_json: bool) -> None:
        folder = put(bert_folder(tmp_path / "model", {"tokenizer_class": "BertTokenizer"}), **files)
        if as_json:
            bert_json().save(str(folder / "tokenizer.json"))
        assert differing(folder) == []

    def test_the_special_tokens_map_wins_over_the_settings(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "model", {"cls_token": "[CLS]"})
        put(folder, special_tokens_map={"cls_token": "[SEP]", "sep_token": token("[CLS]")})
        assert differing(folder) == []
        assert load_encoder(folder).cls_id == BERT.index("[SEP]")

    def test_it_is_not_read_beside_an_added_tokens_decoder(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "model", {"added_tokens_decoder": decoder()})
        put(folder, special_tokens_map={"cls_token": "[SEP]"}, added_tokens={"[NEW]": len(BERT)})
        assert differing(folder) == []

    @pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "SomebodysTokenizer"])
    def test_tokenizer_json_decides_where_the_class_is_not_followed(self, tmp_path: Path, name: str) -> None:
        """Settings of BERT's cleaning then have no effect."""
        names = ["input_ids", "token_type_ids", "attention_mask"]
        settings = {"tokenizer_class": name, "do_lower_case": True, "model_input_names": names}
        folder = put(tmp_path / "model", config={"model_type": "bert"}, tokenizer_config=settings)
        bert_json().save(str(folder / "tokenizer.json"))
        assert differing(folder) == []

    @pytest.mark.parametrize("name", [name for name, found in FOLLOWED.items() if found.kind == "bert"])
    def test_followed_classes_are_the_same(self, tmp_path: Path, name: str) -> None:
        expected = load_tokenizer(bert_folder(tmp_path / "bert", {"tokenizer_class": "BertTokenizer"}))
        tokenizer = load_tokenizer(bert_folder(tmp_path / "model", {"tokenizer_class": name}))
        assert [tokenizer.encode(text).ids for text in TEXTS] == [expected.encode(text).ids for text in TEXTS]

    @pytest.mark.parametrize(
        "content",
        ["\r\n".join(BERT) + "\r\n", "\n".join([*BERT, "cat"]) + "\n", "\n".join([*BERT[:8], "", *BERT[8:]])],
        ids=["crlf", "twice", "empty-line"],
    )
    def test_unusual_lines(self, tmp_path: Path, content: str) -> None:
        folder = bert_folder(tmp_path / "model")
        (folder / "vocab.txt").write_bytes(content.encode())
        assert differing(folder) == []

    def test_a_byte_order_mark_and_empty_lines_at_the_end_are_no_tokens(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "model")
        (folder / "vocab.txt").write_bytes(("\ufeff" + "\n".join(BERT) + "\n\n\n").encode())
        encoder = load_encoder(folder)
        assert (encoder.vocab_size, encoder.pad_id) == (len(BERT), 0)


class TestMpnet:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"do_lower_case": False}, {"model_input_names": ["input_ids", "token_type_ids"]}],
        ids=["none", "cased", "types"],
    )
    @pytest.mark.parametrize("as_json", [True, False], ids=["json", "vocabulary"])
    def test_ids_are_those_of_transformers(self, tmp_path: Path, settings: dict[str, Any], as_json: bool) -> None:
        document = {"tokenizer_class": "MPNetTokenizer", **settings}
        folder = put(tmp_path / "model", config={"model_type": "mpnet"}, tokenizer_config=document)
        if as_json:
            frame = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
            word_pieces(MPNET, lowercase=True, frame=frame).save(str(folder / "tokenizer.json"))
        else:
            (folder / "vocab.txt").write_text("\n".join(MPNET) + "\n", "utf-8")
        assert differing(folder) == []
        encoding = load_tokenizer(folder).encode("a", "b")
        assert (len(encoding.ids), set(encoding.type_ids)) == (6, {0})


@pytest.fixture(scope="module")
def herbert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vocab.json`` and ``merges.txt`` of characters, as HerBERT has them."""
    folder = tmp_path_factory.mktemp("herbert")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=PAIRS_SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([sample.text for sample in read_samples(sample_text("calibration"))], trainer)
    tokenizer.model.save(str(folder))
    return folder


def copied(source: Path, target: Path, **documents: Any) -> Path:
    shutil.copytree(source, target)
    return put(target, **documents)


class TestHerbert:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"additional_special_tokens": ["[NEW]"]}, {"do_lower_case": True}],
        ids=["none", "additional", "lowercase"],
    )
    @pytest.mark.parametrize("as_json", [True, False], ids=["json", "vocabulary"])
    def test_ids_are_those_of_transformers(
        self, herbert_dir: Path, tmp_path: Path, settings: dict[str, Any], as_json: bool
    ) -> None:
        names = ["input_ids", "token_type_ids", "attention_mask"]
        document = {"tokenizer_class": "HerbertTokenizerFast", "model_input_names": names, **settings}
        folder = copied(herbert_dir, tmp_path / "model", config={"model_type": "bert"}, tokenizer_config=document)
        if as_json:
            AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        assert differing(folder) == []

    def test_without_the_class_pairs_of_characters_are_refused(self, herbert_dir: Path, tmp_path: Path) -> None:
        folder = copied(herbert_dir, tmp_path / "model", config={"model_type": "bert"})
        with pytest.raises(CheckpointError, match=r"not a vocabulary of pairs of bytes.*</w>.*HerbertTokenizer"):
            load_tokenizer(folder)

    def test_pairs_of_bytes_under_its_name_are_refused(self, roberta_dir: Path, tmp_path: Path) -> None:
        folder = copied(roberta_dir, tmp_path / "model", tokenizer_config={"tokenizer_class": "HerbertTokenizer"})
        with pytest.raises(CheckpointError, match="not a vocabulary of HerbertTokenizer"):
            load_tokenizer(folder)

    def test_characters_that_are_no_bytes_are_refused(self, tmp_path: Path) -> None:
        tokens = [*PAIRS_SPECIAL, *"東京大阪駅猫犬"]
        put(tmp_path, vocab={name: index for index, name in enumerate(tokens)})
        (tmp_path / "merges.txt").write_text("#version: 0.2\n東 京\n")
        with pytest.raises(CheckpointError, match="7 of its 12 tokens have characters that stand for no byte"):
            load_tokenizer(tmp_path)


class TestRoberta:
    @pytest.mark.parametrize(
        "settings",
        [
            {"tokenizer_class": "RobertaTokenizer"},
            {"tokenizer_class": "LongformerTokenizer", "add_prefix_space": True},
            {"tokenizer_class": "BartTokenizer", "trim_offsets": False},
            {"additional_special_tokens": ["[NEW]"], "do_lower_case": True},
            {"mask_token": {"__type": "AddedToken", **token("<mask>", lstrip=True)}},
        ],
        ids=["class", "longformer", "bart", "additional", "mask"],
    )
    @pytest.mark.parametrize("as_json", [True, False], ids=["json", "vocabulary"])
    def test_ids_are_those_of_transformers(
        self, roberta_dir: Path, tmp_path: Path, settings: dict[str, Any], as_json: bool
    ) -> None:
        folder = copied(roberta_dir, tmp_path / "model", config={"model_type": "roberta"})
        if as_json:
            AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        put(folder, tokenizer_config=settings)
        assert differing(folder) == []


class TestAlbert:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"do_lower_case": False, "keep_accents": True},
            {"add_prefix_space": False},
            {"tokenizer_class": "AlbertTokenizerFast", "additional_special_tokens": ["[NEW]"]},
        ],
        ids=["none", "cased", "no-prefix", "additional"],
    )
    @pytest.mark.parametrize("as_json", [True, False], ids=["json", "vocabulary"])
    def test_ids_are_those_of_transformers(
        self, albert_dir: Path, tmp_path: Path, settings: dict[str, Any], as_json: bool
    ) -> None:
        names = ["input_ids", "token_type_ids", "attention_mask"]
        folder = copied(albert_dir, tmp_path / "model")
        if as_json:
            AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        put(folder, tokenizer_config={"model_input_names": names, **settings})
        assert differing(folder) == []


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    @pytest.mark.parametrize("place", ["config", "tokenizer_config"])
    def test_classes_of_python_code(self, tmp_path: Path, name: str, place: str) -> None:
        """A tokenizer.json does not help, since transformers does not read it for them."""
        folder = put(bert_folder(tmp_path / "model"), **{place: {"tokenizer_class": name}})
        bert_json().save(str(folder / "tokenizer.json"))
        with pytest.raises(CheckpointError, match=rf"{place}\.json: the tokenizer class {name} is not supported"):
            load_tokenizer(folder)

    @pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "CamembertTokenizer", "SomebodysTokenizer"])
    def test_other_classes_need_tokenizer_json(self, tmp_path: Path, name: str) -> None:
        folder = bert_folder(tmp_path / "model", {"tokenizer_class": name})
        with pytest.raises(CheckpointError, match=rf"{name} is followed only with a tokenizer\.json.*save_pretrained"):
            load_tokenizer(folder)

    @pytest.mark.parametrize(
        ("mark", "expected"),
        [
            (lambda word: f"▁{word}", "begin with ▁ "),
            (lambda word: f"Ġ{word}", "begin with Ġ "),
            (lambda word: f"{word}</w>", "end in </w> or @@ "),
            (lambda word: f"{word}@@", "end in </w> or @@ "),
            (lambda word: f"{word} 1234", "end in a count "),
        ],
        ids=["sentencepiece", "bytes", "characters", "subword-nmt", "fairseq"],
    )
    @pytest.mark.parametrize("name", [None, "BertTokenizer", "KoBertTokenizer"])
    def test_other_vocabularies(
        self, tmp_path: Path, mark: Callable[[str], str], expected: str, name: str | None
    ) -> None:
        words = ["the", "cat", "dog", "sleeps", "wall", "waits", "2019"]
        vocabulary = [*SPECIAL, *string.ascii_lowercase, *map(mark, words)]
        folder = bert_folder(tmp_path / "model", name and {"tokenizer_class": name}, vocabulary=vocabulary)
        with pytest.raises(CheckpointError, match=f"not a vocabulary of word pieces: 7 of its 38 tokens {expected}"):
            load_tokenizer(folder)

    def test_a_vocabulary_of_characters_and_numbers_is_one_of_word_pieces(self, tmp_path: Path) -> None:
        vocabulary = [*SPECIAL, *string.ascii_lowercase, "▁", "2019", "1999", "@", "東", "</w>"]
        assert load_tokenizer(bert_folder(tmp_path / "model", vocabulary=vocabulary)).get_vocab_size() == 37

    @pytest.mark.parametrize(
        "name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "vocab.json", "config.json"]
    )
    def test_pointers_of_git_lfs(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
        (tmp_path / "merges.txt").touch()
        with pytest.raises(CheckpointError, match=rf"{name}: is a Git LFS pointer.*git lfs pull"):
            load_tokenizer(tmp_path)


class TestSettingsOfTheWrongKind:
    def test_all_are_named(self, tmp_path: Path) -> None:
        settings = {
            "do_lower_case": "false",
            "strip_accents": 1,
            "model_input_names": "input_ids",
            "padding_side": "both",
        }
        with pytest.raises(CheckpointError) as raised:
            load_tokenizer(bert_folder(tmp_path / "model", {**settings, "tokenizer_class": 7}))
        assert str(raised.value).splitlines() == [
            f"{tmp_path / 'model' / 'tokenizer_config.json'}: 5 problems",
            "  - do_lower_case must be true or false, not 'false'",
            "  - strip_accents must be true or false, not 1",
            "  - model_input_names must be a list of names, not 'input_ids'",
            "  - tokenizer_class must be a name, not 7",
            "  - padding_side must be left or right, not 'both'",
        ]

    def test_those_of_the_special_tokens_map(self, tmp_path: Path) -> None:
        folder = put(bert_folder(tmp_path / "model"), special_tokens_map={"additional_special_tokens": "[NEW]"})
        with pytest.raises(CheckpointError, match=r"map\.json: additional_special_tokens must be a list"):
            load_tokenizer(folder)

    def test_null_counts_as_missing(self, tmp_path: Path) -> None:
        empty = dict.fromkeys(("do_lower_case", "model_input_names", "additional_special_tokens", "truncation_side"))
        encoder = load_encoder(bert_folder(tmp_path / "model", empty))
        assert encoder.truncation_side == "right"
        assert encoder.tokenizer.encode("The").ids == encoder.tokenizer.encode("the").ids


class TestWarnings:
    def test_capitals_that_no_text_reaches(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        load_tokenizer(bert_folder(tmp_path / "model"))
        (record,) = caplog.records
        assert "45 % of the words of the vocabulary (54 of 121, such as '##A') have capitals" in record.getMessage()
        assert '"do_lower_case": false' in record.getMessage()

    @pytest.mark.parametrize("lowercase", [True, False])
    def test_none_where_a_setting_decides(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, lowercase: bool
    ) -> None:
        load_tokenizer(bert_folder(tmp_path / "model", {"do_lower_case": lowercase}))
        assert caplog.records == []

    def test_none_for_a_vocabulary_in_small_letters(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        small = [word for word in BERT if word in SPECIAL or word == word.lower()]
        load_tokenizer(bert_folder(tmp_path / "model", vocabulary=[*small, *(f"[unused{n}]" for n in range(99))]))
        assert caplog.records == []

    def test_a_class_that_overrides_tokenizer_json_by_default(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = put(tmp_path / "model", config={"model_type": "bert"})
        bert_json().save(str(folder / "tokenizer.json"))
        assert differing(folder) == []
        assert "tokenizer.json keeps capitals, but BertTokenizer makes them small" in caplog.text

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"normalizer": None}, "cleans texts in another way"),
            ({"pre_tokenizer": {"type": "Whitespace"}}, "splits texts in another way"),
            ({"post_processor": None}, "puts other special tokens around texts"),
        ],
        ids=["cleaning", "splitting", "frame"],
    )
    def test_a_file_that_is_built_unlike_its_class_is_kept(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], expected: str
    ) -> None:
        folder = put(tmp_path / "model", config={"model_type": "bert"})
        document = {**json.loads(bert_json().to_str()), **change}
        put(folder, tokenizer=document)
        kept = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer = load_tokenizer(folder)
        assert [tokenizer.encode(text).ids for text in TEXTS] == [kept.encode(text).ids for text in TEXTS]
        assert f"tokenizer.json {expected}, unlike BertTokenizer" in caplog.text
        assert "PreTrainedTokenizerFast" in caplog.text

    def test_padding_at_the_left(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        load_tokenizer(bert_folder(tmp_path / "model", {"padding_side": "left", "do_lower_case": True}))
        assert "padding_side is left" in caplog.text

    def test_a_class_whose_vocabulary_is_missing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        load_tokenizer(bert_folder(tmp_path / "model", {"tokenizer_class": "AlbertTokenizer", "do_lower_case": True}))
        assert "AlbertTokenizer needs spiece.model" in caplog.text
        assert "vocab.txt is read as BertTokenizer" in caplog.text

    def test_code_of_the_folder(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        auto_map = {"AutoTokenizer": ["tokenization.Own", None]}
        folder = put(tmp_path, tokenizer_config={"tokenizer_class": "OwnTokenizer", "auto_map": auto_map})
        bert_json().save(str(folder / "tokenizer.json"))
        load_tokenizer(folder)
        assert "OwnTokenizer is code of this folder (auto_map), which is not run" in caplog.text

    def test_each_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = bert_folder(tmp_path / "model")
        load_tokenizer(folder)
        load_encoder(folder)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


class TestLengths:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_long_texts_are_cut_where_transformers_cuts_them(self, tmp_path: Path, side: str) -> None:
        folder = bert_folder(tmp_path / "model", {"truncation_side": side, "do_lower_case": True})
        reference, encoder = AutoTokenizer.from_pretrained(folder), load_encoder(folder)
        for pair in PAIRS:
            (batch,) = encode_batches([TextSample(*pair)], encoder, batch_size=1, seq_len=9)
            assert batch["input_ids"][0].tolist() == reference(*pair, truncation=True, max_length=9)["input_ids"]

    def test_the_side_may_stand_in_tokenizer_json(self, tmp_path: Path) -> None:
        folder = put(tmp_path / "model", config={"model_type": "bert"})
        tokenizer = bert_json(lowercase=True)
        tokenizer.enable_truncation(8, direction="left")
        tokenizer.enable_padding(length=16)
        tokenizer.save(str(folder / "tokenizer.json"))
        assert AutoTokenizer.from_pretrained(folder).truncation_side == load_encoder(folder).truncation_side == "left"
        assert len(load_tokenizer(folder).encode("x" * 40).ids) == 42

    @pytest.mark.parametrize(("given", "expected"), [(64, 64), (1e30, None), (None, None), ("x", None)])
    def test_the_usual_length(self, tmp_path: Path, given: object, expected: int | None) -> None:
        assert load_encoder(bert_folder(tmp_path / "model", {"model_max_length": given})).usual_length == expected
