"""What steps cost, as far as they were measured: it decides how much is drafted, not what comes."""

# What a further token costs, as a part of a step with one, until steps were measured.
_COST = 0.1

# Steps of more tokens, those of prompts, say nothing about steps of a few.
_MOST_TOKENS = 64


class StepCosts:
    """What a step costs by its tokens: a line through the steps so far, the latest ones first."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of 1, tokens, seconds, tokens², tokens · seconds

    def note(self, tokens: int, seconds: float) -> None:
        """Takes the measure of a step."""
        if tokens > _MOST_TOKENS:
            return
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = [0.98 * old + each for old, each in zip(self._sums, new, strict=True)]

    @property
    def of_token(self) -> float:
        """The cost of one more token, as a part of a step with one."""
        count, tokens, seconds, squares, products = self._sums
        spread = count * squares - tokens * tokens
        if spread <= count:  # steps of one size say nothing
            return _COST
        slope = (count * products - tokens * seconds) / spread
        one = (seconds - slope * tokens) / count + slope
        return max(slope, 0.0) / one if one > 0 else _COST
