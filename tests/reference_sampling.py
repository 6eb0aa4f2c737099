"""The specification of the generation loop in NumPy float64: constraints, filters, draws, ends.

Written after the sources of Hugging Face's generate, by sorting whole rows; nothing is shared with the
package. V token ids. `options` are those of `_core.SamplingOptions`, as a dict.
"""

from __future__ import annotations

import numpy as np
import reference

DEFAULTS = {
    "min_new_tokens": 0,
    "greedy": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "banned_tokens": (),
    "forced_tokens": {},
    "stop_tokens": (),
    "stop_strings": (),
}


def constrained(logits, tokens, prompt, options, allowed=None):
    """Scores (V,) after penalties and prohibitions; tokens: `prompt` of the prompt, then the new ones."""
    o = DEFAULTS | options
    scores, V = logits.astype(np.float64).copy(), len(logits)
    for token in set(tokens):
        z = scores[token]
        scores[token] = z * o["repetition_penalty"] if z < 0 else z / o["repetition_penalty"]
    n = o["no_repeat_ngram_size"]
    if n:
        grams = {}
        for at in range(len(tokens) - n + 1):
            grams.setdefault(tuple(tokens[at : at + n - 1]), []).append(tokens[at + n - 1])
        scores[grams.get(tuple(tokens[len(tokens) - n + 1 :]), [])] = -np.inf
    scores[list(o["banned_tokens"])] = -np.inf
    if len(tokens) - prompt < o["min_new_tokens"]:
        scores[list(o["stop_tokens"])] = -np.inf
    if allowed is not None:
        scores[~allowed] = -np.inf
    forced = o["forced_tokens"].get(len(tokens) - prompt)
    if forced is not None:
        scores = np.where(np.arange(V) == forced, 0.0, -np.inf)
    return scores


def filtered(scores, options):
    """Scores divided by the temperature, -inf where a filter has struck."""
    o = DEFAULTS | options
    scores = scores / o["temperature"]

    def p():  # of what is left
        return np.exp(reference.log_softmax(scores))

    def keep(order, count):
        scores[order[count:]] = -np.inf

    def reaching(mass, target):
        return int(np.searchsorted(np.cumsum(mass), target)) + 1

    if o["top_k"]:
        keep(np.argsort(-scores, kind="stable"), o["top_k"])
    if o["top_p"] < 1:
        order = np.argsort(-scores, kind="stable")
        keep(order, reaching(p()[order], o["top_p"]))
    if o["min_p"] > 0:
        scores[p() < o["min_p"] * p().max()] = -np.inf
    if o["typical_p"] < 1:
        surprisal = -reference.log_softmax(scores)
        entropy = np.sum(p()[p() > 0] * surprisal[p() > 0])
        order = np.argsort(np.abs(surprisal - entropy), kind="stable")
        keep(order, reaching(p()[order], o["typical_p"]))
    return scores


def uniform(seed, index):
    """The number in [0, 1) that draws new token `index` of the sequence with `seed`: 53 bits of one block."""
    counter, key = (0, index, 0, 0x73616D70), (int(seed) & 0xFFFFFFFF, int(seed) >> 32)  # stream "samp"
    words = reference.philox4x32(counter, key)
    return ((words[0] >> 5) * 2**26 + (words[1] >> 6)) * 2.0**-53


def drawn(scores, u):
    """The first token, in order of id, at which the running mass exceeds u; u may be an array."""
    cumulative = np.cumsum(np.exp(reference.log_softmax(scores)))
    return np.searchsorted(cumulative, np.asarray(u) * cumulative[-1], side="right")


def choose(scores, seed, index, options):
    if options.get("greedy"):
        return int(np.argmax(scores))
    return int(drawn(filtered(scores, options), uniform(seed, index)))


def behind_stop_string(text, piece, stop_strings):
    """Bytes of `piece`, the end of `text`, behind the first end of a stop string within it; else None."""
    for end in range(len(text) - len(piece) + 1, len(text) + 1):
        if any(text[:end].endswith(stop) for stop in stop_strings):
            return len(text) - end
    return None


def generate(start, step, prompt, seed, options, texts=None, allowed=None, processor=None):
    """One sequence: tokens, log-probabilities, logits (T, V), finish and bytes behind a stop string.

    start(prompt) and step(token, state) give logits and state; texts: of the tokens; allowed(tokens) a mask.
    """
    o = DEFAULTS | options
    tokens, text, rows, logprobs = list(prompt), b"", [], []
    finish, behind = "length", 0
    logits, state = start(prompt)
    for index in range(o["max_new_tokens"]):
        mask = None if allowed is None else allowed(tokens)
        scores = constrained(logits, tokens, len(prompt), options, mask)
        if processor is not None:
            scores = processor(tokens, scores)
        token = choose(scores, seed, index, options)
        tokens.append(token)
        rows.append(reference.log_softmax(logits.astype(np.float64)))
        logprobs.append(rows[-1][token])
        if o["stop_strings"]:
            text += texts[token]
            end = behind_stop_string(text, texts[token], o["stop_strings"])
            if end is not None and index + 1 >= o["min_new_tokens"]:
                finish, behind = "stop_string", end
                break
        if token in o["stop_tokens"]:
            finish = "stop_token"
            break
        logits, state = step(token, state)
    return tokens[len(prompt) :], logprobs, np.array(rows), finish, behind
