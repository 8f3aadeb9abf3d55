"""Who somebody is: names, compared as a reader sees them and not as a computer spells them; and logins.

Hides the letters that look alike. Two texts name one person when they look the same, or do after upper and
lower case, blanks, punctuation and marks are taken away.
"""

import os
import pwd
import unicodedata

from pipeline.settings.plain_text import one_line

_ALIKE = {
    "1": "➀",
    "2": "ƧƻϨᒿ➁ꙄꛯꝚ",
    "3": "ƷȜЗҘӠ➂ⳌꝪꞫ𑣊𖼻",
    "4": "Ꮞᔯᔰ➃𑢯",
    "5": "Ƽ➄𑢻",
    "6": "бᏮ➅Ⳓ𑣕",
    "7": "➆𐓒𑣆",
    "8": "Ȣȣ৪੪➇𐌚",
    "9": "৭੧୨൭➈ⳊꝮ𑢬𑣌𑣖",
    "A": "ΑАᎪᗅꓮ𐊠𖽀",
    "B": "ƁΒВᏴᗷꓐꞴ𐊂𐊡𐌁",
    "C": "ƇСҪᏟⲤꓚ𐊢𐌂𐐕𐔜𑣩𑣲",
    "D": "ÐĐƉƊᎠᗞᗪꓓ",
    "E": "ɆΕЕᎬⴹꓰ𐊆𑢦𑢮",
    "F": "ƑϜᖴꓝꞘ𐊇𐊥𐔥𑢢𑣂",
    "G": "ƓǤԌᏀᏳꓖ",
    "H": "ĦΗНҢӇӉᎻᕼⱧⲎꓧ𐋏",
    "J": "ɈͿЈᎫᒍᒘᒙꓙꞲ",
    "K": "ƘΚКҚҞᏦᛕⱩⲔꓗꝀ𐔘",
    "L": "ŁᏞᒪᒶⳐꓡ𐐛𐔦𑢣𑢲𖼖",
    "M": "ΜϺМӍᎷᗰᛖⲘꓟ𐊰𐌑",
    "N": "ƝΝⲚꓠ𐔓",
    "O": "ØƟΘΟθОѲӨՕ০ଠ୦ዐᎤᎾᏫⲞⴱⵁⵔ〇ꓳꝊ𐊒𐊫𐐄𐓂𐔖𑓐𑢵𑣠",
    "P": "ƤΡРᏢᑭᑶᒆᣖⲢꓑ𐊕",
    "Q": "ⵕ",
    "R": "ƦᎡᏒᖇꓣ𐒴𖼵",
    "S": "ЅՏᏕᏚꓢ𐊖𐐠𖼺",
    "T": "ŦƬƮȾΤТҬᎢⲦꓔ𐊗𐊱𐌕𑢼𖼊",
    "U": "ɄՍሀᏌᑌᑗᑘᑧꓴ𐓎𑢸𖽂",
    "V": "Ѵ۷Ꮩᐯᐺᐻⴸꓦꛟ𐔝𑢠𖼈",
    "W": "ԜᎳᏔꓪ𑣦𑣯",
    "X": "ΧХҲᚷⲬⵝꓫꞳ𐊐𐊴𐌗𐌢𐔧𑣬",
    "Y": "ƳɎΥУҮҰᎩᎽⲨꓬ𐊲𑢤𖽃",
    "Z": "ƵȤΖᏃꓜ𐋵𑢩𑣥",
    "a": "ɑαа",
    "b": "ƀƂƃƄɓБЬѢѣҌҍᏏᑲᑳᑾᑿᒀᒁᒈᖯ",
    "c": "ȼсҫᴄⲥꮯ𐐽",
    "d": "đƌɖɗԁᏧᑯᑺᑻᒇꓒ",
    "e": "ɇеҽҿꬲ",
    "f": "ƒքᵮẝꞙꬵ",
    "g": "ƍǥɠɡցᶃ",
    "h": "ħɦћһհᏂᏲꚕ",
    "i": "ıɨɩɪιіӏᎥᵻᵼꙇꭵ𑣃",
    "j": "ɉϳј",
    "k": "ƙ",
    "l": "łƖƗƚǀɫɭΙІӀ۱ᒷᛁᣳⲒⵏꓲ𐊊𐌉𐌠𖼨",
    "m": "ꭑ",
    "n": "ƞɲɳηոռᵰ",
    "o": "øɵοσоѳөօ۵०੦૦௦౦೦ഠ൦๐໐တဝ၀ჿᴏᴑⲟꝋꬽꬾꭴꮎꮻ𐐬𐓪𑣈𑣗",
    "p": "ƥρрᑷᵽⲣ",
    "q": "ʠԛգզ",
    "r": "ɍɼɽгґғᣴᴦᵲⲅꭇꭈꮁ",
    "s": "ƽʂѕᣵᵴꜱꮪ𐑈𑣁",
    "t": "ŧƫƭᵵ",
    "u": "ʋυսᴜᵾꞟꭎꭒꮜ𐓶𑣘",
    "v": "νѵᴠꮩ𑜆𑣀",
    "w": "ɯѡѽԝաᴡꝡꮃ𑓅𑜊𑜎𑜏",
    "x": "хᕁᕽ",
    "y": "ƴɏɣʏγуүұყᶌỿꭚ𑣜",
    "z": "ƶȥʐᙆᴢᵶꮓ𑣄",
}
"""Letter or digit -> what looks like it, beside what NFKD says. From confusables.txt of the Unicode Security
Mechanisms (Unicode Technical Standard 39), version 15.1."""
_SEVERAL = {
    "➉": "10",
    "Ꜳ": "AA",
    "Æ": "AE",
    "Ӕ": "AE",
    "Ꜵ": "AO",
    "Ꜷ": "AU",
    "Ꜹ": "AV",
    "Ꜻ": "AV",
    "Ꜽ": "AY",
    "Œ": "OE",
    "Ꚙ": "OO",
    "Ꝏ": "OO",
    "Ꜩ": "T3",
    "ꜳ": "aa",
    "æ": "ae",
    "ӕ": "ae",
    "ꜵ": "ao",
    "ꜷ": "au",
    "ꜹ": "av",
    "ꜻ": "av",
    "ꜽ": "ay",
    "Ы": "bl",
    "ʣ": "dz",
    "Ю": "lO",
    "ǁ": "ll",
    "ʪ": "ls",
    "ʫ": "lz",
    "œ": "oe",
    "ꚙ": "oo",
    "ꝏ": "oo",
    "ɱ": "rn",
    "ᵯ": "rn",
    "𑜀": "rn",
    "𑣣": "rn",
    "ꝷ": "tf",
    "ʦ": "ts",
    "ᵫ": "ue",
    "ꭣ": "uo",
}
"""What looks like several letters, from there as well."""
_EMPTY = "\u115f\u1160"
"""Letters to Unicode, that show nothing: the Hangul fillers."""
_SKELETON = str.maketrans(
    {sign: letter for letter, signs in _ALIKE.items() for sign in signs}
    | _SEVERAL
    | {"0": "O", "1": "l", "I": "l", "m": "rn"}
)


def same_person(one: str, other: str) -> bool:
    """Tells whether two names are, or can be taken for, one person's.

    Case, compatibility forms, letters that look alike, blanks, punctuation, accents and marks that show
    nothing make no difference. A title or another order of the names does.
    """
    return not _looks(one).isdisjoint(_looks(other))


def has_letters(name: str) -> bool:
    """Tells whether anything of a name is left to compare."""
    return "" not in _looks(name)


def logins() -> dict[str, str]:
    """Returns what this process is logged in as: `system`, and `mlflow` where a name for MLflow is set.

    The system's is asked of the kernel: what the environment says of it, anybody can write.
    """
    number = os.getuid()
    try:
        names = {"system": pwd.getpwuid(number).pw_name}
    except KeyError:
        names = {"system": f"uid {number}"}
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME", "").strip():
        names["mlflow"] = one_line(name, "MLFLOW_TRACKING_USERNAME")
    return names


def _looks(name: str) -> set[str]:
    return {_skeleton(form) for form in (name, name.lower(), name.upper())}


def _skeleton(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    seen = "".join(sign for sign in letters if unicodedata.category(sign)[0] in "LN" and sign not in _EMPTY)
    return unicodedata.normalize("NFKD", seen.translate(_SKELETON)).casefold()
