"""Specification of beam search in plain Python: tuples of tokens, every candidate sorted, no clever memory.

`beam_search` takes the model as a function from the tokens so far, context and new ones, to logits (V,).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Options:
    width: int = 5
    num_return: int = 1
    groups: int = 1
    diversity_strength: float = 0.0
    max_new_tokens: int = 20
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    length_penalty_form: str = "plain"
    early_stopping: bool | str = False
    stop_tokens: tuple[int, ...] = ()
    banned_tokens: tuple[int, ...] = ()
    forced_tokens: dict[int, int] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def score(self, total, length):
        base = length if self.length_penalty_form == "plain" else (5 + length) / 6
        return total / base**self.length_penalty


@dataclass
class Group:
    beams: dict = field(default_factory=lambda: {(): 0.0})  # tokens: sum, best first
    finished: list = field(default_factory=list)  # (score, tokens), best first
    done: bool = False


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64) - np.max(logits)
    return shifted - math.log(np.exp(shifted).sum())


def after_rules(log_p, context, tokens, options):
    """Hugging Face's processors on the log-probabilities of one beam."""
    log_p, ids = np.array(log_p), [*context, *tokens]
    if len(tokens) in options.forced_tokens:
        forced = np.arange(len(log_p)) == options.forced_tokens[len(tokens)]
        return np.where(forced, 0.0, -math.inf)
    for token in set(ids):
        factor = options.repetition_penalty
        log_p[token] *= factor if log_p[token] < 0 else 1 / factor
    n = options.no_repeat_ngram_size
    if n:
        grams = {tuple(ids[j : j + n]) for j in range(len(ids) - n + 1)}
        for token in range(len(log_p)):
            if (*ids[len(ids) - n + 1 :], token) in grams:
                log_p[token] = -math.inf
    log_p[list(options.banned_tokens)] = -math.inf
    if len(tokens) < options.min_new_tokens:
        log_p[list(options.stop_tokens)] = -math.inf
    return log_p


def beam_search(logits_of, context, options):
    """One source: its n-best as (score, tokens, log-probabilities), and the agreed prefix after each step."""
    size = options.width // options.groups
    groups = [Group() for _ in range(options.groups)]
    prefixes = []
    for step in range(options.max_new_tokens):
        taken = []  # tokens that earlier groups chose in this step, stop tokens apart
        for group in groups:
            if group.done:
                continue
            candidates = []  # (-sum, rank of the beam, token, tokens): in the order of choice when sorted
            for rank, (tokens, total) in enumerate(group.beams.items()):
                log_p = after_rules(log_softmax(logits_of((*context, *tokens))), context, tokens, options)
                for token, value in enumerate(log_p):
                    if value > -math.inf:
                        value -= options.diversity_strength * taken.count(token)
                        candidates.append((-(total + value), rank, token, (*tokens, token)))
            candidates.sort()
            group.beams, chosen = {}, []
            for place, (minus_sum, _, token, tokens) in enumerate(candidates):
                stops = token in options.stop_tokens
                if stops or step + 1 == options.max_new_tokens:
                    if place >= size:
                        continue
                    group.finished.append((options.score(-minus_sum, step + 1), tokens))
                elif len(group.beams) < size:
                    group.beams[tokens] = -minus_sum
                else:
                    continue
                chosen += [] if stops else [token]
            group.finished = sorted(group.finished, key=lambda one: -one[0])[:size]
            group.done = is_done(group, step + 1, size, options)
            if group.done:
                group.beams = {}
            taken += chosen
        best = sorted((one for group in groups for one in group.finished), key=lambda one: -one[0])
        running = [tokens for group in groups for tokens in group.beams]
        prefixes.append(common_prefix([*running, *(tokens for _, tokens in best[:1])]))
        if all(group.done for group in groups):
            break
    n_best = []
    for score, tokens in best[: options.num_return]:
        log_p = [log_softmax(logits_of((*context, *tokens[:j])))[token] for j, token in enumerate(tokens)]
        n_best.append((score, tokens, log_p))
    return n_best, prefixes


def is_done(group, length, size, options):
    if not group.beams:
        return True
    if len(group.finished) < size:
        return False
    if options.early_stopping is True:
        return True
    if options.early_stopping == "never" and options.length_penalty > 0:
        length = options.max_new_tokens
    return options.score(max(group.beams.values()), length) <= group.finished[-1][0]


def common_prefix(sequences):
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return tuple(column[0] for column in same)


def all_sequences(logits_of, context, V, options):
    """Every hypothesis there is, best first: stop tokens end one, and so does max_new_tokens."""
    complete, open_ones = [], [((), 0.0)]
    for step in range(options.max_new_tokens):
        longer = []
        for tokens, total in open_ones:
            log_p = after_rules(log_softmax(logits_of((*context, *tokens))), context, tokens, options)
            for token in range(V):
                one = ((*tokens, token), total + log_p[token])
                ends = token in options.stop_tokens or step + 1 == options.max_new_tokens
                (complete if ends else longer).append(one)
        open_ones = longer
    scored = [(options.score(total, len(tokens)), tokens) for tokens, total in complete]
    return sorted((one for one in scored if one[0] > -math.inf), key=lambda one: -one[0])
