from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.accounting import FrameAccount
from station.messages import Capture, Outcome, SkipReason

CAPTURE = Capture(None, datetime(2026, 1, 1, tzinfo=UTC), 0.0)


@given(st.lists(st.sampled_from(["capture", *Outcome, *SkipReason])), st.integers(0, 9))
def test_the_account_balances_at_every_moment(steps: list[str], waiting: int) -> None:
    account = FrameAccount()
    pending = 0
    for step in steps:
        if step == "capture":
            account.captured(CAPTURE)
            pending += 1
        elif pending == 0:
            with pytest.raises(ValueError, match="never counted in"):
                account.judged(Outcome.OK) if step in set(Outcome) else account.skipped(SkipReason.RATE_LIMIT)
        else:
            account.judged(Outcome(step)) if step in set(Outcome) else account.skipped(SkipReason(step))
            pending -= 1
        seen = account.snapshot(waiting)
        assert seen.balanced
        assert seen.pending == pending + waiting


def test_lost_lines_add_up() -> None:
    account = FrameAccount()
    for lost in (3, 0, 4):
        account.captured(Capture(None, CAPTURE.captured_at, 0.0, lines_lost=lost))
    assert account.snapshot(0).lines_lost == 7
