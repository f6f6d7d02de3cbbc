"""Answers whose words, primes, colons or names count: what differs in them is another answer."""

from __future__ import annotations

import time

import pytest

from s2l_ext.rewards.math import grade
from s2l_ext.rewards.math_verify_guards import refused
from s2l_ext.rewards.quantity import number
from s2l_ext.rewards.spelling import plain
from s2l_ext.rewards.text_guards import cross_products, with_symbols

WRONG_WORDS_BEHIND_A_SYMBOL = (
    (r"n \text{ odd}", r"n \text{ even}"),
    (r"n\text{ prime}", r"n\text{ composite}"),
    (r"x \text{ rational}", r"x \text{ irrational}"),
    ("n", r"n\text{ even}"),
    (r"n\text{ even}", "n"),
    (r"n\text{ even}", "m=n"),
    (r"11\text{ AM}", r"11\text{ PM}"),
    (r"7:30\text{ a.m.}", r"7:30\text{ p.m.}"),
    (r"7:30\text{ a.m.}", "7:30 p.m."),
    ("11", r"11\text{ PM}"),
    ("7:30", r"7:30\text{ p.m.}"),
    (r"12\text{ p.m.}", r"11\text{ p.m.}"),
    (r"5\%\text{ of people}", "5"),
    (r"f(x)\text{ increasing}", r"f(x)\text{ decreasing}"),
    (r"5\text{ odd}", "5"),
    ("n even", "n odd"),
    (r"\text{even}", r"\text{odd}"),
)
RIGHT_WORDS_BEHIND_A_SYMBOL = (
    (r"7:30\text{ PM}", r"7:30\text{ p.m.}"),
    ("7:30 p.m.", r"7:30\text{ p.m.}"),
    ("7:30 PM", r"7:30\text{ p.m.}"),
    (r"7\text{ p.m.}", "7"),
    (r"7:30\text{ p.m.}", "7:30"),
    (r"n\text{ even}", r"n\text{ even}"),
    (r"2x\text{ cm}", "2x"),
    ("2x", r"2x \text{ dollars}"),
    (r"36\pi\text{ cm}^2", r"36\pi"),
    (r"2^n\text{ subsets}", "2^n"),
    ("$7:30$ p.m.", "7:30 PM"),
    (r"5\text{ prime numbers}", "5"),
    (r"10n \text{ square feet}", "10n"),
    (r"12\sqrt{3}\text{ apples}", r"12\sqrt3"),
    (r"\frac{1}{2}\text{ cups}", "0.5"),
    (r"(2x+1)\text{ cm}", "2x+1"),
    (r"x=5\text{ cm}", "5"),
    (r"x^{2}\text{ square meters}", "x^2"),
    (r"5\text{ apples}", "5"),
    (r"2\pi r\text{ m}", r"2\pi r"),
    (r"20\text{ m/s}", "20"),
    (r"10\text{ days}", r"10\text{ hours}"),
    (r"x\mathrm{ cm}", "x"),
)

WRONG_RATIOS = (
    ("3:5:4", "3:4:5"),
    ("0.15", "3:4:5"),
    (r"1:\sqrt3:2", r"1:2:\sqrt3"),
    ("12:30:15", "12:15:30"),
    ("a:b:c=3:5:4", "a:b:c=3:4:5"),
    ("c:b:a=3:4:5", "a:b:c=3:4:5"),
    ("3:4", "3:4:5"),
    ("3:4:5", "3:4"),
    ("3:4:5:6", "3:4:5"),
    ("0.15", "3:4"),
    ("0:1:2", "0:2:5"),
)
RIGHT_RATIOS = (
    ("6:8:10", "3:4:5"),
    ("3:4:5", "3:4:5"),
    ("3 : 4 : 5", "3:4:5"),
    ("a:b:c=3:4:5", "3:4:5"),
    ("3:4:5", "a:b:c=6:8:10"),
    ("x:y:z=3:4:5", "3:4:5"),
    (r"\frac12:1:\frac{\sqrt3}{2}", r"1:2:\sqrt3"),
    ("6:8", "3:4"),
    ("3/4", "3:4"),
    ("a^2:b^2:c^2", "a^2:b^2:c^2"),
    ("(3:4:5)", "3:4:5"),
    ("12:15:30", "12:15:30"),
    ("0:0:1", "0:0:2"),
    ("0:1:2", "0:2:4"),
    ("-3:-4:-5", "3:4:5"),
    ("2x:3x:4x", "2:3:4"),
)

WRONG_DERIVATIVES_PRIMES_AND_CHAINS = (
    (r"\frac{dy}{dx}=3x", r"\frac{dy}{dx}=2x"),
    (r"\frac{dy}{dx}=\frac{x}{y}", r"\frac{dy}{dx}=-\frac{x}{y}"),
    (r"\frac{dV}{dt}=3", r"\frac{dV}{dt}=4"),
    ("f''(x)", "f'(x)"),
    ("f'(x)", "f''(x)"),
    ("f(2)=5", "f'(2)=5"),
    ("f'(2)=5", "f(2)=5"),
    ("a=b=0", "a=b=c=0"),
    ("a=b=c=0", "a=b=0"),
    ("a=b=c", "a=c"),
    ("a=c", "a=b=c"),
    ("x=1", "x=y=1"),
    ("x=y=1", "x=1"),
    ("y'=2x", "y'=3x"),
    (r"\frac{d^2y}{dx^2}=2", r"\frac{d^2y}{dx^2}=3"),
    (r"\frac{dy}{dx}=2", r"\frac{d^2y}{dx^2}=2"),
    (r"\frac{\partial u}{\partial t}=2", r"\frac{\partial u}{\partial t}=3"),
    ("y''+y=0", "y'+y=0"),
    ("x=y=2", "x=y=1"),
    (r"x\frac{dy}{dx}=2y", r"x\frac{dy}{dx}=3y"),
    (r"f^{\prime}(2)=5", "f(2)=5"),
)
RIGHT_DERIVATIVES_PRIMES_AND_CHAINS = (
    (r"\frac{dy}{dx}=3x", r"\frac{dy}{dx}=3x"),
    (r"\frac{dy}{dx}=x\cdot 3", r"\frac{dy}{dx}=3x"),
    (r"\dfrac{dy}{dx} = \frac{-x}{y}", r"\frac{dy}{dx}=-\frac{x}{y}"),
    ("3x", r"\frac{dy}{dx}=3x"),
    ("3", r"\frac{dV}{dt}=3"),
    (r"\frac{dV}{dt}=3", "3"),
    ("y'=3x", "y'=3x"),
    ("5", "f'(2)=5"),
    ("f'(2)=5", "5"),
    ("f'(x)=2x+2", "f'(x)=2(x+1)"),
    ("2x", "f'(x)=2x"),
    ("y''+y=0", "y+y''=0"),
    ("x=2+3=5", "x=5"),
    ("x=5", "x=2+3=5"),
    (r"A=\pi r^2=9\pi", r"A=9\pi"),
    ("5", "x=2+3=5"),
    ("a=b=c", "a=b=c"),
    ("x=y=1", "x=y=1"),
    (r"f^{\prime}(2)=5", "f'(2)=5"),
    (r"30^\circ 15'", r"30^\circ 15'"),
)

WRONG_NUMBER_WORDS = (
    ("5 eighths", "5"),
    (r"5\text{ hundredths}", "5"),
    (r"5\text{ thousands}", "5"),
    ("5 hundred thousand", "5"),
    ("5 million dollars", "5"),
    ("half of 5", "5"),
    (r"5\text{ million}", "5"),
    ("5 tenths", "5"),
    ("twice 5", "5"),
    ("5 halves", "5"),
    ("5 thousandths", "5"),
    ("a third of 5", "5"),
    ("5 fifths", "5"),
    ("double 5", "5"),
    ("5 sixths", "5"),
    ("5 ninths", "5"),
)
RIGHT_NUMBER_WORDS = (
    ("5 apples", "5"),
    ("5 seconds", "5"),
    ("5 million", "5 million"),
    ("the area is 5 square meters", "5"),
    ("There are 5 apples left", "5"),
    ("5 dollars and cents", "5"),
    ("5 years old", "5"),
)

WRONG_DIVISORS_OF_LETTERS = (
    ("mn", r"\frac{mn}{\gcd(m,n)}"),
    ("1", r"\gcd(m,n)"),
    ("m+n-1", r"m+n-\gcd(m,n)"),
    (r"\gcd(a,b)", r"\gcd(b,c)"),
    (r"\operatorname{lcm}(a,b)", "ab"),
)
RIGHT_DIVISORS_OF_LETTERS = (
    (r"\gcd(n,m)", r"\gcd(m,n)"),
    (r"m+n-\gcd(m,n)", r"n+m-\gcd(n,m)"),
    (r"\frac{mn}{\gcd(m,n)}", r"\frac{m n}{\gcd(m,n)}"),
    (r"\gcd(m,n)", r"\gcd(m,n)"),
    (r"\gcd(m, n)", r"\gcd(m,n)"),
    (r"m+n-\gcd(m,n)", r"m+n-\gcd(m,n)"),
    (r"\gcd(12,18)", "6"),
    ("6", r"\gcd(12,18)"),
    (r"\text{lcm}(a,b)", r"\operatorname{lcm}(a,b)"),
    ("gcd(m,n)", r"\gcd(m,n)"),
)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *WRONG_WORDS_BEHIND_A_SYMBOL,
        *WRONG_RATIOS,
        *WRONG_DERIVATIVES_PRIMES_AND_CHAINS,
        *WRONG_NUMBER_WORDS,
        *WRONG_DIVISORS_OF_LETTERS,
    ],
)
def test_another_answer(answer, gold):
    assert not grade(f"\\boxed{{{answer}}}", gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *RIGHT_WORDS_BEHIND_A_SYMBOL,
        *RIGHT_RATIOS,
        *RIGHT_DERIVATIVES_PRIMES_AND_CHAINS,
        *RIGHT_NUMBER_WORDS,
        *RIGHT_DIVISORS_OF_LETTERS,
    ],
)
def test_the_same_answer(answer, gold):
    assert grade(f"\\boxed{{{answer}}}", gold)


def test_a_divisor_is_not_forged_by_the_mark_that_stands_for_it():
    assert not grade("\\boxed{\0" + "0" + "\0}", r"\gcd(m,n)")


@pytest.mark.parametrize(
    "answer",
    [
        *(r"\gcd(" + r"\alpha" * 500, "gcd(" * 900, r"\frac{dy" * 500 + "=", "(" * 2000 + ")" * 1990 + r"\text{ cm}"),
        *("3:" * 1900, "a=" * 1900, "f'" * 1900, r"x\text{ " + "units " * 600 + "}"),
    ],
    ids=range(8),
)
def test_hostile_texts_take_no_time(answer):
    started = time.process_time()
    one = plain(answer)
    with_symbols(one, "x=1")
    refused(one, "3:4:5")
    cross_products(one, one)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"5\text{ million}", None),
        (r"5\text{ or more}", None),
        (r"5\text{ not}", None),
        (r"5\text{ m}", 5.0),
        (r"3\times 10^{-5}\text{ m}", 3e-5),
        (r"5\mathrm{~m/s}", 5.0),
    ],
)
def test_a_quantity_with_a_number_word_is_no_number(text, value):
    assert number(text) == value
