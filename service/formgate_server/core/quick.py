"""Named tuples made without their constructor, which takes three times as long: for what every check makes."""

from __future__ import annotations

made = tuple.__new__
"""``made(Charge, (…))``: the class, and the values of all its fields in order; no default fills in for one."""
