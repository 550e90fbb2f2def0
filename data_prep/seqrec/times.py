"""Times of events: numbers in any unit, or ISO 8601, as microseconds since 1970 (UTC)."""

from __future__ import annotations

import polars as pl

MICRO = 1_000_000
# Years 1800 to 2200: a stamp outside is no time of an interaction, but damage or another unit.
EARLIEST, LATEST = -5_364_662_400 * MICRO, 7_258_118_400 * MICRO
POSITIONS = 1_000_000  # whole numbers from 0 to below this are positions in a sequence, not seconds of January 1970
_FACTOR = {"s": MICRO, "ms": 1000, "us": 1}
# Numbers nearer to 0 than this are of a coarser unit (1e11 seconds are the year 5138, 1e11 milliseconds 1973).
_SMALLEST = {"s": 0.0, "ms": 1e11, "us": 1e14, "ns": 1e17}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "position": "positions"}
_OFFSET = r"^(.{13,}?)\s*(?:([+-])(\d{2}):?(\d{2})?|[Zz]|UTC)$"
_FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d")


def guess_unit(column: pl.Series, *, positions: bool) -> tuple[str, bool]:
    """Unit of a column of times, and whether they are text.

    Args:
        column: times at the beginning of a file.
        positions: small whole numbers may be positions.

    Returns:
        One of `UNITS`; text of ISO 8601 counts as seconds.
    """
    numbers = _numbers(column).drop_nulls()
    textual = column.dtype == pl.String and numbers.len() * 2 <= column.drop_nulls().len()
    if not numbers.len() or textual:
        return "s", textual
    values = numbers.cast(pl.Float64).abs()
    whole = bool((numbers.cast(pl.Float64) == values.floor()).all())
    if positions and whole and float(values.max() or 0) < POSITIONS:  # type: ignore[arg-type]
        return "position", False
    # The middle one: a few stamps that are 0 or damaged do not decide.
    middle = float(values.sort()[values.len() // 2])
    return next(unit for unit in ("ns", "us", "ms", "s") if middle >= _SMALLEST[unit]), False


def to_micros(column: pl.Series, unit: str, *, exact: bool) -> tuple[pl.Series, pl.Series | None]:
    """Times as whole microseconds, or as positions.

    Args:
        column: numbers, text, or a temporal type.
        unit: of the numbers.
        exact: do not doubt the unit.

    Returns:
        Int64, null where there is no usable time; and the reasons (String, null where it is usable), None when all are
        usable.
    """
    numbers = _numbers(column) if not column.dtype.is_temporal() else None
    found = _temporal(column) if numbers is None else _scale(numbers, unit)
    if unit == "position":
        return found, _reasons(column, [(found.is_null(), "is not a whole number")])
    if column.dtype == pl.String and numbers is not None and numbers.null_count() > column.null_count():
        found = found.fill_null(_iso(column))
    doubtful = not exact and numbers is not None and _SMALLEST[unit] > 0
    low, high = found.min(), found.max()
    if not doubtful and not found.null_count() and (not found.len() or (low >= EARLIEST and high < LATEST)):  # type: ignore[operator]
        return found, None
    problems = [(found.is_null(), "is neither a number nor ISO 8601")]
    if doubtful and numbers is not None:
        small = (numbers.cast(pl.Float64).abs() < _SMALLEST[unit]).fill_null(False)
        problems.append((small, f"has not the magnitude of {_NAMES[unit]}, in which the file begins (mixed units?)"))
    outside = ((found < EARLIEST) | (found >= LATEST)).fill_null(False)
    why = f"read as {_NAMES[unit]}" if exact else f"the file begins in {_NAMES[unit]}; mixed units?"
    problems.append((outside, f"is outside the years 1800 to 2200 ({why})"))
    reasons = _reasons(column, problems)
    return (found if reasons is None else found.set(reasons.is_not_null(), None)), reasons


def _reasons(column: pl.Series, problems: list[tuple[pl.Series, str]]) -> pl.Series | None:
    """`time is ...` by the first mask that is set, `time is missing` where there is none; None when no mask is."""
    if not any(where.any() for where, _ in problems):
        return None
    shown = column.cast(pl.String, strict=False).fill_null("").str.slice(0, 40)
    frame = pl.DataFrame({"shown": shown, **{text: where for where, text in problems}})
    told = [pl.when(text).then(pl.lit(f"time {text}")) for _, text in problems]
    missing = pl.when(pl.any_horizontal([text for _, text in problems]) & (pl.col("shown") == ""))
    return frame.select(pl.coalesce(missing.then(pl.lit("time is missing")), *told).alias("reason"))["reason"]


def _numbers(column: pl.Series) -> pl.Series:
    """Int64 where all are whole, Float64 else; null where it is no number, or not finite."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        whole = column.cast(pl.Int64, strict=False)
        if whole.null_count() == column.null_count():
            return whole
    elif not column.dtype.is_numeric():
        return pl.repeat(None, column.len(), eager=True, dtype=pl.Int64)
    values = column.cast(pl.Float64, strict=False)
    values = values.set(~values.is_finite().fill_null(False), None)
    if values.drop_nulls().abs().max() is None or float(values.abs().max()) < 2**53:  # type: ignore[arg-type]
        whole = values.floor()
        if (whole == values).fill_null(True).all():
            return whole.cast(pl.Int64)
    return values


def _scale(numbers: pl.Series, unit: str) -> pl.Series:
    if unit == "position":
        if numbers.dtype == pl.Int64:
            return numbers
        return numbers.set((numbers != numbers.floor()).fill_null(True), None).cast(pl.Int64, strict=False)
    if unit == "ns":
        return numbers // 1000 if numbers.dtype == pl.Int64 else (numbers / 1000).floor().cast(pl.Int64, strict=False)
    factor = _FACTOR[unit]
    bound = 9e18 / factor
    if numbers.dtype == pl.Int64:
        low, high = numbers.min(), numbers.max()
        if low is None or (float(low) > -bound and float(high) < bound):  # type: ignore[arg-type]
            return numbers * factor
    scaled = (numbers.cast(pl.Float64).clip(-bound, bound) * factor).round()
    return scaled.cast(pl.Int64, strict=False)


def _temporal(column: pl.Series) -> pl.Series:
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if not isinstance(column.dtype, pl.Datetime):
        return pl.repeat(None, column.len(), eager=True, dtype=pl.Int64)
    return column.dt.epoch("us")


def _iso(column: pl.Series) -> pl.Series:
    """ISO 8601 as microseconds; UTC where it names no offset."""
    parts = column.str.strip_chars().to_frame("text")
    parts = parts.with_columns(*(pl.col("text").str.extract(_OFFSET, group).alias(str(group)) for group in range(1, 5)))
    hours, minutes = (pl.col(name).cast(pl.Int64).fill_null(0) for name in ("3", "4"))
    parts = parts.with_columns(
        pl.coalesce("1", "text").str.replace("[Tt]", " ").str.replace(",", ".", literal=True).alias("plain"),
        (pl.when(pl.col("2") == "-").then(-1).otherwise(1) * (hours * 60 + minutes) * 60 * MICRO).alias("ahead"),
    )
    values = pl.repeat(None, column.len(), eager=True, dtype=pl.Int64)
    for form in _FORMS:
        found = parts["plain"].str.to_datetime(form, strict=False, time_unit="us")
        values = values.fill_null(found.dt.epoch("us") - parts["ahead"])
        if values.null_count() == column.null_count():
            break
    return values
