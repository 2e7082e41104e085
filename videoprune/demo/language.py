"""The demo model's language: its words, its tokenizer, its prompt.

The vocabulary part is pure Python. Only :func:`build_tokenizer` needs ``tokenizers`` and ``transformers``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from videoprune.demo import names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, IMAGE, VIDEO, START, END, UNKNOWN = SPECIALS = (
    "<pad>",
    "<image>",
    "<video>",
    "<|im_start|>",
    "<|im_end|>",
    "<unk>",
)
PUNCTUATION = tuple(".,?!:;()'\"-")
LETTERS = ("A", "B", "C", "D")  # of lettered options; upper case, because "a" is the article

_PLAIN = """
system user assistant a an the this that these it there is are was does do did in on at of to and or not no yes with
from by for as its one's you your we i what which where when how who many often much times time color colour colors
direction way place places scene scenes setting video film clip main mainly mostly most part take takes taking taken
show shows shown showing appear appears appeared appearing see seen can be visible happen happens happened happening
occur occurs event events right immediately directly just after before next previous first last earliest final start
end beginning begin during while move moves moved moving go goes going travel travels heading cross crosses object
objects item items thing things shape shapes they them have has had kind name called mention small tiny little briefly
short moment unusual strange odd anomaly abnormal anything something nothing describe list summarize summary order all
every each about only option options letter answer question best give select choose correct following carefully watch
pay attention detail details based your observations accurately addresses single zero one two three four five number
count total
"""
# added for a second course of training; at the end, so that a word keeps its number
_MORE = """
tell me please identify location movie footage filmed set background environment overall weird incident ordinary
wrong out quickly head second traveling brief hidden colored shade follows followed comes came prior preceded precedes
preceding once then gone toward towards side passes motion occasions enters initial starts begins very sequence recap
everything inside screen s
"""

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys((*SPECIALS, *PUNCTUATION, *LETTERS, *names.CONCEPTS, *names.NUMBERS, *_PLAIN.split(), *_MORE.split()))
)
WORD_ID = {word: i for i, word in enumerate(VOCABULARY)}

# Words that mean (nearly) what a trained concept word means; they start from its embedding.
SYNONYMS = {"strange": "unusual", "odd": "unusual", "anomaly": "unusual", "abnormal": "unusual"}
SYNONYMS |= {"items": "item", "objects": "object", "shape": "object", "shapes": "object"}

# A word added later starts as a copy of one that stands in the same places, so that it is understood before it is trained.
LIKE = {
    "tell": "describe", "me": "the", "please": "carefully", "identify": "name", "location": "place", "movie": "film",
    "footage": "video", "filmed": "take", "set": "take", "background": "setting", "environment": "setting",
    "overall": "main", "weird": "strange", "incident": "event", "ordinary": "unusual", "wrong": "unusual", "out": "of",
    "quickly": "briefly", "head": "go", "second": "moment", "traveling": "moving", "brief": "tiny", "hidden": "tiny",
    "colored": "color", "shade": "color", "follows": "after", "followed": "after", "comes": "appears",
    "came": "appears", "prior": "before", "preceded": "before", "precedes": "before", "preceding": "before",
    "once": "after", "then": "next", "gone": "visible", "toward": "in", "towards": "in", "side": "direction",
    "passes": "appears", "motion": "direction", "occasions": "times", "enters": "appears", "initial": "first",
    "starts": "first", "begins": "first", "very": "the", "sequence": "order", "recap": "summarize",
    "everything": "events", "inside": "in", "screen": "video", "s": "of",
}  # fmt: skip

_PIECE = r"<[^<>\s]+>|\w+|[^\w\s]"
_LETTER_IN_BRACKETS = re.compile(r"\(\s*([a-d])\b")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>{% elif part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% if not loop.last %} {% endif %}"
    "{% endfor %}{% endif %} <|im_end|>{% if not loop.last %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <|im_start|> assistant{% endif %}"
)


def words(text: str) -> list[str]:
    """Split text into words and punctuation as the tokenizer does: lower case, but ``(A)`` keeps its letter."""
    lower = _LETTER_IN_BRACKETS.sub(lambda found: "(" + found[1].upper(), text.lower())
    return re.findall(_PIECE, lower)


def encode(text: str) -> list[int]:
    """Token ids, without special handling; equal to the shipped tokenizer's."""
    unknown = WORD_ID[UNKNOWN]
    return [WORD_ID.get(word, unknown) for word in words(text)]


def unknown_words(question: str) -> list[str]:
    """The words of a question that the demo model was never taught, in order, each once."""
    return list(dict.fromkeys(word for word in words(question) if word not in WORD_ID))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as a stock fast tokenizer that ``AutoTokenizer`` loads."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(WORD_ID, unk_token=UNKNOWN))
    upper = [normalizers.Replace(Regex(rf"\(\s*{letter.lower()}\b"), f"({letter}") for letter in LETTERS]
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *upper])
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    tidy = [decoders.Fuse(), decoders.Replace("( ", "("), decoders.Replace(" )", ")")]
    inner.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), *tidy])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[IMAGE, VIDEO, START],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def complete(question: str) -> str:
    """The question with the closing mark that every training question has: "?" after a question, "." after an order.

    Without it the model takes a question for the start of a list.
    """
    bare = question.rstrip(" .?!")
    first = bare.split(" ", 1)[0].lower()
    orders = ("list", "name", "describe", "tell", "give", "summarize", "summarise", "identify", "recap", "count")
    return f"{bare}{'.' if first in orders else '?'}" if bare and "(" not in bare else question
