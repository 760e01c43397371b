"""Finds brand names in running text, with any apostrophes, accents and hyphens, except where they are common
words.

`Levi's` is also Levi’s, Levis and LEVI'S; `H&M` is also H & M and H and M; `Hermès` is also Hermes. `On`,
`Next` and `Gap` are common words. They count as brands only with a capital letter; at the start of a sentence
only if a sentence would not begin with that word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_FUNCTION_WORDS = """
a about above across after again against all almost along already also although always am among an and another
any anybody anyone anything are around as at away back be because been before behind being below beneath
beside best better between beyond both but by can close come could did do does done down during each either
else enough even ever every everyone everything few first for forever free from front full further get give go
good great had half has have he hence her here hers herself high him himself his how however i if in inside
instead into is it its itself just keep last later least left less let like little long look made make many
may me might mine more most much must my myself near nearly never next no nobody none nor not nothing now of
off often on once one only onto open or other others our ours out outside over own part past per perhaps quite
rather really right same see seen self set several shall she should show shown side simply since so some
somebody someone something still such take than that the their theirs them themselves then there therefore
these they this those though through throughout thus to together too top toward towards twice two under
underneath until up upon us use used very via was we well were what when where whether which while who whole
whom whose why will with within without would yes yet you your yours
"""
_FUNCTION = frozenset(_FUNCTION_WORDS.split())
"""Words that often begin a sentence."""

_PLAIN_WORDS = """
active air amber american anchor angel animal apple aqua arc arch armour art ash autumn axis baby balance
ballet bamboo banana band bar bare bark basic basics bay beach beam bear beauty bee bell belt bench berry big
bird black blank blazer bliss block bloom blouse blue board boat body bold bolt bonds book boot boots border
boss bow box boy boys bread breeze bridge bright broken brook brother brown brush bubble buck bucket buckle
buffalo bug bull butter butterfly button cactus camel camp canvas cap cape captain carbon cargo casual cat
cave chain champion chance change charm check cherry chevron chic chocolate cider circle citizen citizens city
clarity classic clay clean clear cloud clouds club coach coast coat cobalt cocoa coconut coffee collar collect
collection collective color colour column comfort comma common concept copper coral cord core corner cotton
count country course court cow craft cream creator crew cross crown cube cuff culture cut daily daisy dance
dark dawn day days deep deer delta denim desert design dew diamond diesel dirt dog dome dot double dove drape
dream dreams dress drop dry duck dune dusk dust eagle earth east easy echo edge edit edited eight element
elephant eleven ember empire end epic equal era essence essential essentials everyday express extra eye fable
face fairy faith falcon fall fame family fan farm fashion fat father feather felt field fire fish fit five
flag flame flannel fleece flex flight flow flower fly foam fog folk foot force forest form fossil foundry four
fox frame freedom fresh friend friends frost fruit future gap garden garment gem gentle ghost giant girl girls
glass globe glory gold golden grace grand grass gray green grey grid ground group guess gun hair hand hands
happy harbor harbour hat haven heart heather helix hem heritage hero hill hive holiday hollow home honey hood
hope horizon horse hot house human hunter hush ice icon idea idol image indigo ink island ivory ivy jack
jacket jade jaguar jeans jersey jewel jigsaw joy juicy jump jungle key kind king kingdom kiss knight knit knot
label lace lady lake lamb land lands lark laundry leaf league leather legend legends leggings lemon lens level
liberty life light lily lime line linen lines lion live local loft logo loom loop lost lotus love lovers luck
lucky lush magic mainstream mango maple marble marine market mary mask master matter maze meadow memory men
mens mesh metal method midnight milk mint mirror mission mist mix mode model modern monsoon moon morning moss
mother motion mountain movement music name native natural nature navy neck needle neon nest new nice night
nine noble noir nomad north nova oak oasis oat object ocean old olive onyx opal opening orange orbit orchid
order origin original outlet owl pact page paint palm panel panther paper paradise park patch path pattern
pause peace peach peak pearl people pepper perfect person phase phoenix photo picture piece pieces pigment
pilot pine pink pioneer pitch plain planet plate play pleat plum pocket point polo pony poppy port portrait
powder power present press prime prince princess print product promise pure purple quartz queen quiet quince
rabbit radiant rag rain rainbow ranger raven ray reach real rebel red reed reef reformation religion replay
republic reserve reserved rib ribbon ridge ring rise river road robe rock root roots rope rose rough round
route row royal ruby rush rust sable safari saffron sage sail saint sand sapphire satin scarlet school scout
sea seam season second secret seed selected senses service seven shade shadow shape shark shell shift shine
ship shirt shoe shore short shorts shoulder silence silk silver simple singles sister six skin skirt sky
sleeve slip slow small smart smile smoke smooth snow soft sole solid song soul sound south space spark spirit
splash sport sports spring sprout square stamp standard star stars state steel step stitch stone storm story
straight stream street stripe strong studio stuff style suit summer sun sunday sunny supreme surf swan sweat
sweater swim tag tailor target task tea team temple ten texture theory things thread three tiger time toast
tomorrow tone tower town toy track trade trail train tree trend tribe true truth twill twist umbrella uniform
union unique unity universal urban valley van vanilla vans vault velvet vest vintage viola violet virgin
vision vital wave waves wax way wear weather weekday weekend west wharf wheel whistles white wild willow wind
wing winter wish wolf woman women wonder wood wool word work world worn yard yellow young zebra zero zone
"""
_PLAIN = frozenset(_PLAIN_WORDS.split())
"""Words of captions and of everyday English that are, or may be, names of brands."""

MANY = 2
"""A name found more often than this in one caption may have been a common word."""

_LETTERS = {"ß": "ss", "ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
_APOSTROPHES = dict.fromkeys("’‘‛ʼʹ′´`＇", "'")
_HYPHENS = dict.fromkeys("‐‑‒–—−－", "-")


def _folded(text: str) -> tuple[str, list[int]]:
    """The text in plain lower-case letters, and the position of each letter in `text`."""
    letters, places = [], []
    for place, character in enumerate(text):
        plain = _APOSTROPHES.get(character) or _HYPHENS.get(character) or character
        for part in unicodedata.normalize("NFKD", plain.casefold()):
            if not unicodedata.combining(part):
                for letter in _LETTERS.get(part, part):
                    letters.append(letter)
                    places.append(place)
    return "".join(letters), [*places, len(text)]


def _is_common(name: str) -> bool:
    words = re.findall(r"\w+", _folded(name)[0])
    return (
        bool(words)
        and all(word in _FUNCTION or word in _PLAIN or len(word) == 1 for word in words)
        and "&" not in name
    )


def _pattern(name: str, common: bool) -> str:
    """A regular expression for a folded name: its words, with the usual separators between them."""
    folded = _folded(name)[0].strip()
    if not re.search(r"\w", folded):
        return re.escape(folded)
    between = r"[\s-]+" if common else r"[\s-]*"
    parts = []
    for part in re.findall(r"\w+|\s*&\s*|[\s-]+|'|\.\s*|[^\w\s]", folded):
        if re.match(r"\w", part):
            parts.append(re.escape(part))
        elif "&" in part:
            parts.append(r"\s*(?:&|\band\b)\s*")
        elif part[0] == ".":
            parts.append(r"\.?\s?")
        else:
            parts.append("'?" if part == "'" else between if re.match(r"[\s-]", part) else re.escape(part))
    if folded.endswith("."):
        parts[-1] = r"(?:\.(?!\s*$|\s+[^a-z]))?"
    return "".join(parts).removeprefix(r"\s*")


def find_brands(text: str, brands: Iterable[str]) -> list[tuple[int, int, str]]:
    """(start, end, brand) of every mention of a brand; longest names first, no overlaps."""
    names = sorted(
        {unicodedata.normalize("NFC", " ".join(name.split())) for name in brands},
        key=lambda name: (-len(name), name),
    )
    names = [name for name in names if _folded(name)[0].strip()]
    if not names:
        return []
    common = {name: _is_common(name) for name in names}
    either = "|".join(f"(?P<b{number}>{_pattern(name, common[name])})" for number, name in enumerate(names))
    folded, places = _folded(text)
    found, at = [], 0
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)")
    while at < len(folded) and (match := pattern.search(folded, at)):
        name = names[int(str(match.lastgroup)[1:])]
        start, end = places[match.start()], places[match.end() - 1] + 1
        if match.end() > match.start() and (not common[name] or _is_name(text, start, end, name)):
            found.append((start, end, name))
            at = match.end()
        else:
            at = match.start() + 1
    return found


def _is_name(text: str, start: int, end: int, name: str) -> bool:
    """Whether a common word is the brand at this place: written like a name, and not just capitalised at the
    start of a sentence.
    """
    word = text[start:end]
    words = re.findall(r"\w+", word)
    capital = [part for part in words if part[0].isupper()]
    if len(capital) < len(words) and not all(
        part in re.findall(r"\w+", name) for part in words if not part[0].isupper()
    ):
        return False
    if not capital or re.search(r"\w[-‐‑–]$", text[:start]) or re.match(r"[-‐‑–][a-z]", text[end:]):
        return False  # hands-on, On-trend
    if len(words) > 1 or (word.isupper() and len(word) > 1):
        return True
    starts = re.search(r"(?:^|[.!?:>\n]|[-–—]\s)[\s\"'“‘(]*$", text[:start])
    if not starts:
        return True
    follows = re.match(r"\s+([a-z]+)", text[end:])
    plain = word.lower()
    return not (follows and (plain in _FUNCTION or len(plain) == 1 or follows[1] in _FUNCTION))


def replace_names(text: str, brands: Iterable[str], by: str) -> tuple[str, Counter[str]]:
    """The text with `by` in place of every brand, and how often each brand was replaced."""
    found = find_brands(text, brands)
    for start, end, _ in reversed(found):
        text = text[:start] + by + text[end:]
    return text, Counter(name for _, _, name in found)
