import unicodedata

import pytest

from pipeline.settings.people import _ALIKE, _SEVERAL, has_letters, same_person


@pytest.mark.parametrize(
    "other",
    [
        "dr adams",
        " Dr  ADAMS ",
        "Dr. Adams",
        "DrAdams",
        "Dr\N{NO-BREAK SPACE}Adams",
        "Dr \N{CYRILLIC CAPITAL LETTER A}dams",
        "Dr \N{GREEK CAPITAL LETTER ALPHA}dams",
        "Dr Ad\N{CYRILLIC SMALL LETTER A}m\N{CYRILLIC SMALL LETTER DZE}",
        "Dr A\N{ZERO WIDTH SPACE}dams",
        "Dr A\N{ZERO WIDTH NON-JOINER}dams",
        "Dr A\N{COMBINING GRAPHEME JOINER}dams",
        "Dr Adams\N{HANGUL FILLER}",
        "Dr Adams\N{VARIATION SELECTOR-16}",
        "\N{RIGHT-TO-LEFT MARK}Dr Adams",
        "Dr A\N{COMBINING DIAERESIS}dams",
        "Dr Àdams",
        "\N{FULLWIDTH LATIN CAPITAL LETTER D}\N{FULLWIDTH LATIN SMALL LETTER R} Adams",
        "Dr \N{MATHEMATICAL BOLD CAPITAL A}dams",
        "Dr Adarns",
    ],
)
def test_one_person_in_another_spelling_is_one_person(other):
    assert same_person("Dr Adams", other) and same_person(other, "Dr Adams")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Olaf Hill", "0laf HiII"),
        ("user1", "userl"),
        ("Νικος", "ΝΙΚΟΣ"),
        ("Nina Otto", "\N{GREEK CAPITAL LETTER NU}ina Otto"),
        ("\N{CYRILLIC SMALL LETTER EN}ans", "Hans"),
        ("Straße", "STRASSE"),
        ("Иванов", "иванoв"),
        ("ﬁona", "Fiona"),
    ],
)
def test_letters_that_look_alike_in_either_case_are_one(one, other):
    assert same_person(one, other) and same_person(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Dr Adams", "Dr Addams"),
        ("Dr Roth", "Dr Toth"),
        ("Dr Hahn", "Dr Vann"),
        ("Dr Baker", "Dr Becker"),
        ("reader2", "reader3"),
        ("Иванов", "Петров"),
        ("李明", "李朋"),
        ("admin", "engineer"),
    ],
)
def test_other_people_are_others(one, other):
    assert not same_person(one, other)


def test_a_name_without_letters_can_be_compared_with_nobody():
    for name in ("", " ", "...", "\N{HANGUL FILLER}", "\N{BRAILLE PATTERN BLANK}", "—"):
        assert not has_letters(name)
    assert has_letters("7") and has_letters("李")


def test_the_table_holds_what_compatibility_forms_leave_each_once():
    signs = [*"".join(_ALIKE.values()), *_SEVERAL]
    assert len(signs) == len(set(signs)) == 587
    for sign in signs:
        assert not sign.isascii() and unicodedata.normalize("NFKD", sign) == sign
    # Well-known pairs, by Unicode's own names.
    greek = "ALPHA BETA EPSILON ETA IOTA KAPPA MU NU OMICRON RHO TAU CHI UPSILON ZETA"
    cyrillic = "A VE ES IE EN KA EM O ER TE HA DZE JE"
    for script, names, latin in (("GREEK", greek, "ABEHIKMNOPTXYZ"), ("CYRILLIC", cyrillic, "ABCEHKMOPTXSJ")):
        for name, letter in zip(names.split(), latin, strict=True):
            assert same_person(f"x{unicodedata.lookup(f'{script} CAPITAL LETTER {name}')}", f"x{letter}")
