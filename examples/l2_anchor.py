"""A continual-learning method in ten lines: hold every weight near its value after the previous experience."""

from __future__ import annotations

import clframe


class L2Anchor(clframe.Strategy):
    """L = cross-entropy + strength / 2 · Σ (θ − θ*)², with θ* the weights at the end of the previous experience."""

    strength: float = clframe.field(default=0.03, ge=0, help="Weight of the penalty; 0 is plain fine-tuning.")

    def setup(self):
        self.anchor_ = {}

    def extra_losses(self, batch, output):
        now = dict(self.network.named_parameters())
        moved = [(now[n] - old).square().sum() for n, old in self.anchor_.items() if now[n].shape == old.shape]
        return {"anchor": self.strength / 2 * sum(moved)} if moved else {}

    def after_experience(self, experience):
        self.anchor_ = {n: p.detach().clone() for n, p in self.network.named_parameters()}
