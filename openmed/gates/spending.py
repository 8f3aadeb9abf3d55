"""How the one error rate of a watch that never ends is spent over its looks."""


def spent(judged: float, planned: int) -> float:
    """Returns what share of the error rate may have been used up when so many films have been judged.

    The error is spent by films and not by looks (a spending function of Lan and DeMets, Biometrika
    1983;70:659-663): half of it on the first `planned` films, a sixth on the next, a twelfth on those after
    them, all of it never; and of each of these parts the more the nearer its films are to their number, as
    then most is known (the cube, one of the powers of Kim and DeMets, Biometrika 1987;74:149-154). However
    the films are cut into looks, the errors of all looks together stay within the rate.
    `judged` are the films judged so far, `planned` (1 or more) those that the plan judges a model on.
    """
    whole, part = divmod(judged / planned, 1)
    return whole / (whole + 1) + part**3 / ((whole + 1) * (whole + 2))


def look_error(before: int, new: int, planned: int, rate: float) -> float:
    """Returns the error that one look may make, of the rate of all looks together, in (0, 1).

    `before` films were judged by earlier looks, `new` ones are of this look alone; one at the same films
    counts one.
    """
    return rate * (spent(before + max(1, new), planned) - spent(before, planned))
