"""A controller: half of what the link can do."""

from abr import Decision, SlowStartEstimator


class Cautious:
    """Half of what the link can do, and the lowest while less than `floor_s` is buffered."""

    def __init__(self, ladder, *, buffer_capacity_s, share=0.5, floor_s=4.0):
        self.ladder, self.share, self.floor_s = ladder, share, floor_s
        self.estimator = SlowStartEstimator()

    def choose(self, observation):
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None or observation.buffer_s < self.floor_s:
            return Decision(0, reason="too little known or buffered")
        index = self.ladder.highest_within(self.share * estimate.rate_bps)
        return Decision(index, estimate_bps=estimate.rate_bps, reason=f"{self.share:.0%} of the link")
