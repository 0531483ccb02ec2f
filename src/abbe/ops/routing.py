"""Top-k routing of packed tokens into slots, and the weighted mean of what each slot got (TC-SSA's core)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Routed:
    """What `routed_mean` gives. Shapes as in `abbe.types`; R = min(top_k, K).

    centres: [B, K, D], zero where no token went.   mass: [B, K], Σ of routed weights.
    taken: [B, K] bool, False for a slot that no token chose.
    index: [T, R] int32 slot of each route, −1 for a masked token.   weight: [T, R] its P~.
    share: [B, K], mean over a slide's tokens of P (before the cut).   chosen: [B, K], mean of membership, Σ = R.
    """

    centres: Tensor
    mass: Tensor
    taken: Tensor
    index: Tensor
    weight: Tensor
    share: Tensor
    chosen: Tensor


def routed_mean(
    x_TD: Tensor, logits_TK: Tensor, offsets: Tensor, *, amount_T: Tensor, top_k: int = 2, eps: float = 1e-9
) -> Routed:
    """Means of tokens over the slots they chose, a slide at a time.

    x_TD: [T, D] tokens.  logits_TK: [T, K] float32.  offsets: [B+1] on the CPU.
    amount_T: [T] ≥ 0, how much each token counts (1 for a patch, 0 for a masked one).

    P = softmax(logits); only the top_k of each token stay, *not* renormalised (P~);
    centre_k = Σ_j a_j P~_jk x_j / (Σ_j a_j P~_jk + eps). Statistics (share, chosen) are means over tokens weighted
    by a_j. Source: TC-SSA §2.2 eq. 1. Truth: `abbe.ops.naive.routed_mean`.
    """
    k = logits_TK.shape[1]
    p_TK = logits_TK.softmax(dim=1)
    top_TR, index_TR = p_TK.topk(min(top_k, k), dim=1)
    kept_TK = torch.zeros_like(p_TK).scatter(1, index_TR, 1.0)
    amount = amount_T.to(p_TK.dtype)
    routed_TK = p_TK * kept_TK * amount[:, None]

    centres, mass, taken, share, chosen = [], [], [], [], []
    for start, stop in pairwise(offsets.tolist()):
        routed, a = routed_TK[start:stop], amount[start:stop]
        # Slots × patches × width: the one product whose cost grows with the slide. Summed in float32 for bf16 tokens.
        total = routed.sum(0)
        centres.append((routed.T @ x_TD[start:stop].to(routed.dtype)) / (total[:, None] + eps))
        mass.append(total)
        n = a.sum().clamp_min(eps)
        member = kept_TK[start:stop] * a[:, None]
        taken.append(member.sum(0) > 0)
        share.append((p_TK[start:stop] * a[:, None]).sum(0) / n)
        chosen.append(member.sum(0) / n)

    here = amount[:, None] > 0
    return Routed(
        centres=torch.stack(centres),
        mass=torch.stack(mass),
        taken=torch.stack(taken),
        index=torch.where(here, index_TR, -1).to(torch.int32),
        weight=torch.where(here, top_TR, 0.0),
        share=torch.stack(share),
        chosen=torch.stack(chosen),
    )
