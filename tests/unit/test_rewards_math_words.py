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

WRONG_GROUPS = (
    ("(4,3)", "x=3, y=4"),
    ("(x,y)=(4,3)", "x=3, y=4"),
    ("(y,x)=(3,4)", "x=3, y=4"),
    ("P=(4,3)", "x=3, y=4"),
    ("(y=3,x=4)", "x=3, y=4"),
    ("(a,b)=(3,4)", "x=3, y=4"),
    ("(x,y)=(3,5)", "x=3, y=4"),
    ("[4,3]", "x=3, y=4"),
    (r"\{4,3\}", "x=3, y=4"),
    (r"\{3,4\}", "x=3, y=4"),
    ("(3,4,5)", "x=3, y=4"),
    ("(4,3)", r"x=3 \text{ and } y=4"),
    ("(4,3)", "x=3;y=4"),
    ("(3,2,1)", "a=1, b=2, c=3"),
    ("(7,5)", "m=5,n=7"),
    ("(3,2)", "f(1)=2,f(2)=3"),
    (r"\{1,2\}", "(x,y)=(1,2)"),
    (r"\{1,2\}", "(1,2)"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", r"A=\{1,2\}"),
    (r"\{1,2\}", r"x\in(1,2)"),
    ("(1,2)", r"x\in\{1,2\}"),
    (r"\{(1,2),(4,3)\}", "(1,2),(3,4)"),
    (r"\{1,2,3,4\}", "(1,2),(3,4)"),
    (r"\{(1,2)\}", "(1,2),(3,4)"),
    (r"\{1,2\},\{3,4\}", "(1,2),(3,4)"),
    (r"\{(1,2),(3,4)\}", r"\{\{1,2\},\{3,4\}\}"),
    (r"\{1,2\}\cup\{5,6\}", r"(1,2)\cup(5,6)"),
    ("(3,1)", "x_{1}=1, x_{2}=3"),
    ("3,1", "x_{1}=1, x_{2}=3"),
    ("x_1=3,x_2=1", "x_{1}=1, x_{2}=3"),
    ("x=1,x=1", "x_{1}=1, x_{2}=3"),
    ("y=1,y=3", "x_{1}=1, x_{2}=3"),
    (r"\{x\mid x<1\}", r"\{x|x>1\}"),
    (r"\{x\in\mathbb{Z}:x>1\}", r"\{x\in\mathbb{R}\mid x>1\}"),
    (r"\begin{pmatrix}-7\cr 5\cr 16\end{pmatrix}", r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}"),
    (r"\begin{pmatrix}-7\\[4pt] 16\end{pmatrix}", r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}"),
)
RIGHT_GROUPS = (
    ("(3,4)", "x=3, y=4"),
    ("(x, y) = (3, 4)", "x=3, y=4"),
    ("(y,x)=(4,3)", "x=3, y=4"),
    ("P=(3,4)", "x=3, y=4"),
    ("(y=4,x=3)", "x=3, y=4"),
    (r"\{x=3,y=4\}", "x=3, y=4"),
    ("(3,4)", r"x=3 \text{ and } y=4"),
    (r"\left(0.5,\frac34\right)", r"x=\frac{1}{2}, y=\frac{3}{4}"),
    ("(1,2,3)", "a=1, b=2, c=3"),
    ("(2,3)", "f(1)=2,f(2)=3"),
    (r"(\alpha,\beta)=(1,2)", r"\alpha=1,\beta=2"),
    (r"\{(3,4),(1,2)\}", "(1,2),(3,4)"),
    (r"(x,y)\in\{(1,2),(3,4)\}", "(1,2),(3,4)"),
    ("(1,2),(3,4)", r"\{(1,2),(3,4)\}"),
    (r"(x,y)\in\{(1,2),(3,4)\}", r"\{(1,2),(3,4)\}"),
    (r"\{(2,3),(3,2)\}", "(2,3),(3,2)"),
    ("x=3,x=1", "x_{1}=1, x_{2}=3"),
    (r"x = 3 \text{ or } x = 1", "x_{1}=1, x_{2}=3"),
    ("x_1=1,x_2=3", "x_{1}=1, x_{2}=3"),
    (r"x\in\{1,3\}", "x_{1}=1, x_{2}=3"),
    (r"x=\frac{1}{2}, x=2", r"x_{1}=2, x_{2}=\frac{1}{2}"),
    (r"\{x : x>1\}", r"\{x|x>1\}"),
    (r"\{ x \mid x > 1 \}", r"\{x|x>1\}"),
    (r"\{x\in\mathbb{R}:x>1\}", r"\{x\in\mathbb{R}\mid x>1\}"),
    (r"\begin{pmatrix}-7\cr 16\cr 5\end{pmatrix}", r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}"),
    (r"\begin{pmatrix} -7 \\[2mm] 16 \\[4pt] 5 \end{pmatrix}", r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}"),
)

WRONG_UNITS = (
    ("2 cup", "1"),
    ("3 sin", "3"),
    ("5 mod", "5"),
    ("2 abc", "2"),
    ("3 Sin", "3"),
    ("5 Million", "5"),
    ("5 Halves", "5"),
    ("12 December", "12"),
    (r"24\pi r", r"24\pi"),
    (r"24\pi rs", r"24\pi"),
    (r"24\pi", r"24\pi rs"),
    (r"24\pi r^2 h", r"24\pi"),
    (r"24\pi cm^3", "24"),
    ("$5$ x$^2$", "5"),
    ("$5$ cm$^2$", "25"),
)
RIGHT_UNITS = (
    ("60 km/h", "60"),
    ("60 kmph", "60"),
    ("1 cup", "1"),
    ("1 egg", "1"),
    ("1 box", "1"),
    ("5 Dollars", "5"),
    ("3 Joules", "3"),
    (r"24\pi cm^3", r"24\pi"),
    (r"24\pi square units", r"24\pi"),
    ("24π cm³", r"24\pi"),
    ("$5$ cm$^2$", "5"),
    (r"$24\pi$ cm³", r"24\pi"),
)

WRONG_NAMED_VALUES = (
    (r"\frac{x+3}{2}", r"f^{-1}(x)=\frac{x-3}{2}"),
    (r"g^{-1}(x)=\frac{x-3}{2}", r"f^{-1}(x)=\frac{x-3}{2}"),
    (r"f(x)=\frac{x-3}{2}", r"f^{-1}(x)=\frac{x-3}{2}"),
    ("5", "x^{-1}=5"),
    ("3.47", r"\approx 3.46"),
    (r"\approx 3.5", "3.46"),
    (r"\approx 5", "5"),
    (r"\lim_{x\to0} f(x)=6", "5"),
    (r"\lim_{x\to 5} x", "5"),
    (r"\lim_{x\to0} f(x) \neq 5", "5"),
    (r"x=3 \lor x=5", "5"),
    (r"\int_0^1 x\,dx", "1/2"),
    (r"\sum_{k=1}^{3} k", "6"),
    (r"\sum_{\substack{k=1}}^{3} k", "6"),
    (r"\sum_{k=1}^{3} k = 7", "6"),
    (r"\sum_{k=1}^3 k >= 6", "6"),
    (r"x = 5 \mod 6", "5"),
    ("June 21", r"\text{June 20}"),
    ("20", r"\text{June 20}"),
    ("May 5, 2021", r"\text{May 5, 2020}"),
)
RIGHT_NAMED_VALUES = (
    (r"\frac{x-3}{2}", r"f^{-1}(x)=\frac{x-3}{2}"),
    (r"f^{-1}(x) = \frac12x-\frac32", r"f^{-1}(x)=\frac{x-3}{2}"),
    ("3.46", r"\approx 3.46"),
    (r"\approx 3.46", "3.46"),
    (r"\lim_{x\to0} f(x)=5", "5"),
    (r"\int_0^1 x\,dx=\frac12", "1/2"),
    (r"\sum_{k=1}^{3} k = 6", "6"),
    ("June 20", r"\text{June 20}"),
    (r"\text{June 20}", "june 20"),
    ("May 5, 2020", r"\text{May 5, 2020}"),
)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *WRONG_WORDS_BEHIND_A_SYMBOL,
        *WRONG_RATIOS,
        *WRONG_DERIVATIVES_PRIMES_AND_CHAINS,
        *WRONG_NUMBER_WORDS,
        *WRONG_DIVISORS_OF_LETTERS,
        *WRONG_GROUPS,
        *WRONG_UNITS,
        *WRONG_NAMED_VALUES,
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
        *RIGHT_GROUPS,
        *RIGHT_UNITS,
        *RIGHT_NAMED_VALUES,
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
