"""Units of measurement after or before the number of an answer."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

_TABLE = """
length 1/1000 mm millimeter millimeters millimetre millimetres
length 1/100 cm centimeter centimeters centimetre centimetres
length 1 m meter meters metre metres
length 1000 km kilometer kilometers kilometre kilometres
length 127/5000 inch in inches
length 381/1250 foot ft feet
length 1143/1250 yard yd yards
length 201168/125 mile mi miles
mass 1/1000 mg milligram milligrams
mass 1 g gram grams
mass 1000 kg kilogram kilograms
mass 45359237/100000 pound lb lbs pounds
mass 45359237/1600000 ounce oz ounces
mass 1000000 tonne tonnes
tons 1 ton tons
time 1/1000 ms millisecond milliseconds
time 1 s sec second seconds secs
time 60 min minute minutes mins
time 3600 h hr hour hours hrs
time 86400 day days
time 604800 week weeks
months 1 month months
months 12 year years yr yrs
volume 1/1000 ml mL milliliter milliliters millilitre millilitres
volume 1 l L liter liters litre litres
volume 473176473/125000000 gallon gallons
angle 1 ° degree degrees deg
radian 1 radian radians rad rads
celsius 1 °C
fahrenheit 1 °F
percent 1 % percent percents
dollar 1 dollar dollars USD bucks $
dollar 1/100 cent cents ¢
euro 1 euro euros EUR €
sterling 1 sterling GBP £
yen 1 yen JPY ¥
rupee 1 rupee rupees Rs INR ₹
unit 1 unit units
point 1 point points
speed 1 mph
mol 1 mol mole moles
frequency 1 Hz hertz
energy 1 J joule joules
force 1 N newton newtons
power 1 W watt watts
potential 1 V volt volts
potential 1000 kV
length 1/1000000000 nm nanometer nanometers
length 1/1000000 um micrometer micrometers
time 1/1000000 us microsecond microseconds
time 1/1000000000 ns nanosecond nanoseconds
kelvin 1 K kelvin kelvins
charge 1 C coulomb coulombs
current 1 A ampere amperes amp amps
current 1/1000 mA
field 1 T tesla
resistance 1 ohm ohms
pressure 1 Pa pascal pascals
pressure 1000 kPa
pressure 1000000 MPa
pressure 101325 atm
force 1000 kN
energy 1000 kJ
power 1000 kW
frequency 1000 kHz
frequency 1000000 MHz
electronvolt 1 eV
electronvolt 1000 keV
electronvolt 1000000 MeV
electronvolt 1000000000 GeV
erg 1 erg ergs
parsec 1 pc parsec parsecs
parsec 1000 kpc
parsec 1000000 Mpc
astronomical 1 AU
"""
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(size))
    for dimension, size, *names in (line.split() for line in _TABLE.strip().splitlines())
    for name in names
}
MONEY = frozenset(("dollar", "euro", "sterling", "yen", "rupee"))
"""The dimensions that are currencies."""
_WORD = "(?:" + "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True)) + ")"
_NUMBER_END = re.compile(r"[0-9)}°%]|\\pi")
_UNIT = re.compile(
    rf"(?P<space> ?)(?P<kind>square |sq\.? ?|cubic |cu\.? ?)?(?P<unit>{_WORD})\.?(?P<power>\^\{{?[23]\}}?|[23]| squared| cubed)?"
    rf"(?:(?:/| ?per | ?an? )(?P<per>{_WORD}|[a-z]{{3,}})(?P<per_power>\^\{{?[23]\}}?)?)?"
    r"(?P<rest> (?:old|long|wide|tall|high|deep|away|ago|apart|total|in total|each|left|altogether|combined|overall|remaining|more|longer|of age|of [a-z ]+))?",
)
_THINGS = re.compile(
    r" ?(?!.*(?:ths|thirds|quarters|halves|pairs|tens|dozens|scores|hundreds|thousands|illions))(?!times|always|perhaps)"
    r"(?:[a-z]{3,15} )?(?P<things>[a-z]{2,}[a-hj-rtv-z]s|people|children|men|women)(?:(?:/| per | an? )[a-z]{3,15})?"
    r"(?: (?:each|in total|total|left|altogether|combined|overall|remaining|of [a-z]+))?"
)
"""Counted things: a plural that is neither a quantity itself nor an adverb like ``thus``."""
_POWER_OF_TEN = re.compile(r"10\^\{?-?\d+\}$")
_START = re.compile(r"[ °%a-zA-Z¢$€£¥₹]")
_MONEY = re.compile(r"(?P<sign>-?) ?(?:(?:US|C|A)?(?P<before>[$€£¥₹])) ?(?P<number>.*)", re.DOTALL)
_RATE = re.compile(r"([^a-z]*[0-9)}]) ?(?:(?:/|per |an? )(?P<per>[a-z]{1,15})|each|in total|total|dollars|USD)")
_PLAIN_RATE = re.compile(
    r"(\d[\d.,]*) ?/ ?(hour|hr|day|week|month|year|minute|min|second|person|item|student|ticket|box|pound)"
)
_FEET = re.compile(r"""(\d+) ?' ?(?:(\d+(?:\.\d+)?|\d+ \d+/\d+) ?(?:"|''))?""")
_MINUTES = re.compile(r"""(\d+) ?° ?(\d+(?:\.\d+)?) ?'(?: ?(\d+(?:\.\d+)?) ?(?:"|''))?""")
_PARTS = re.compile(rf"(\d+(?:\.\d+)?) ?({_WORD}),? ?")
LONGEST = 120
"""Most characters of an answer in which a unit is looked for."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: its ``dimension``, and its ``size`` in terms of the first unit of that dimension; ``by`` is the size of
    the unit after "per", where there is one."""

    dimension: str
    size: Fraction
    by: Fraction = Fraction(1)


def split_unit(text: str) -> tuple[str, Unit | None]:
    """Split a canonical text into number and unit; the unit is None where none is known.

    A single letter is a unit only after a space: ``5 m`` is a length, ``5m`` algebra. ``6'2"`` and ``1 hour 30
    minutes`` become numbers of their smaller unit.
    """
    if len(text) > LONGEST:
        return text, None
    if compound := _compound(text):
        return compound
    if (money := _MONEY.fullmatch(text)) and money["number"]:
        dimension, size = _UNITS[money["before"]]
        rate = _RATE.fullmatch(money["number"])
        number = rate[1] if rate else money["number"]
        if rate and rate["per"]:
            of, by = _UNITS.get(rate["per"], (rate["per"], Fraction(1)))
            return money["sign"] + number, Unit(f"{dimension}/{of}", size / by, by)
        return money["sign"] + number, Unit(dimension, size)
    if rate := _PLAIN_RATE.fullmatch(text):
        return rate[1], Unit("/" + rate[2], Fraction(1))
    for start in _starts(text):
        if match := _UNIT.fullmatch(text, start):
            if len(match["unit"]) == 1 and match["unit"].isalpha() and not _separate(match, text):
                continue
            if (
                match["unit"] == "°"
                and ("\\" in text or "cis" in text)
                and re.search(r"sin|cos|tan|cot|sec|csc|cis", text)
            ):
                continue
            number = text[:start].rstrip()
            return number.replace("°", "") if match["unit"] == "°" else number, _unit(match)
    for start in _starts(text):
        if (match := _THINGS.fullmatch(text, start)) and (text[start] == " " or text[start - 1] in ")}"):
            return text[:start].rstrip(), Unit(match["things"], Fraction(1))
    return text, None


def _starts(text: str) -> list[int]:
    """Positions where a unit may begin: after a number's end, the last words first."""
    found = []
    for end in _NUMBER_END.finditer(text):
        if _START.match(text, end.end()):
            found.append(end.end())
    return found[-3:]


def _separate(match: re.Match[str], text: str) -> bool:
    r"""Whether a space separates number and unit; the one in ``2\pi h`` just ends the command."""
    before = text[: match.start()]
    return (bool(match["space"]) and not before.endswith(r"\pi")) or _POWER_OF_TEN.search(before[-9:]) is not None


def _unit(match: re.Match[str]) -> Unit:
    dimension, size = _UNITS[match["unit"]]
    kinds = {"s": 2, "c": 3}
    power = kinds[match["kind"][0]] if match["kind"] else _exponent(match["power"])
    dimension, size = (dimension if power == 1 else f"{dimension}^{power}"), size**power
    whole = Fraction(1)
    if per := match["per"]:
        of, by = _UNITS.get(per, (per, Fraction(1)))
        exponent = _exponent(match["per_power"])
        whole = by**exponent
        dimension, size = f"{dimension}/{of}" + (f"^{exponent}" if exponent > 1 else ""), size / whole
    return Unit("length/time", Fraction(201168, 125 * 3600)) if dimension == "speed" else Unit(dimension, size, whole)


def _exponent(text: str | None) -> int:
    if not text:
        return 1
    return 3 if "3" in text or "cubed" in text else 2


def _compound(text: str) -> tuple[str, Unit] | None:
    """Read quantities in two units: feet and inches, degrees and minutes, hours and minutes."""
    if match := _MINUTES.fullmatch(text):
        degrees = Fraction(match[1]) + Fraction(match[2]) / 60 + Fraction(match[3] or 0) / 3600
        return _written(degrees), Unit("angle", Fraction(1))
    if (match := _FEET.fullmatch(text)) and (match[2] or text.endswith("'")):
        inches = sum(map(Fraction, (match[2] or "0").split()), Fraction(12 * int(match[1])))
        return _written(inches), Unit("length", _UNITS["inch"][1])
    parts = [(match[1], match[2]) for match in _PARTS.finditer(text)]
    sizes = [_UNITS[unit] for _, unit in parts]
    if len(parts) < 2 or _PARTS.sub("", text).strip() or len({dimension for dimension, _ in sizes}) > 1:
        return None
    if any(larger[1] <= smaller[1] for larger, smaller in itertools.pairwise(sizes)):
        return None
    total = sum((Fraction(number) * size for (number, _), (_, size) in zip(parts, sizes, strict=True)), Fraction(0))
    dimension, smallest = sizes[-1]
    return _written(total / smallest), Unit(dimension, smallest)


def _written(value: Fraction) -> str:
    return str(value)
