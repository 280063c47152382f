"""Discrete latents of stochastic transitions: a posterior that sees the next picture, and a prior that does not.

Kaiser et al. 2019, *Model-Based Reinforcement Learning for Atari*, section 4, "stochastic model with discrete latents".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers.unet import Encoder, UNetSize

WORD = 8
"""Number of bits that the prior draws at once, as one of 256 classes."""


def binarize(logits: Tensor, noise: float = 0.0, flips: float = 0.0) -> Tensor:
    """Return the signs of logits as bits, -1 or 1; their gradient is the gradient of tanh(logits).

    Args:
        logits: logits of any shape.
        noise: standard deviation of the Gaussian noise on the logits.
        flips: probability that a bit is flipped afterwards.
    """
    soft = (logits + noise * torch.randn_like(logits)).tanh() if noise else logits.tanh()
    bits = torch.where(soft > 0, 1.0, -1.0) + (soft - soft.detach())
    return torch.where(torch.rand_like(bits) < flips, -bits, bits) if flips else bits


class Posterior(nn.Module):
    """Encodes a transition in bits: a separate encoder sees the picture and its successor.

    Args:
        inputs: channels of the picture and its successor together.
        height: height of both pictures.
        width: width of both pictures.
        conditions: length of a condition.
        size: size of the encoder.
        bits: number N of bits.
    """

    def __init__(self, inputs: int, height: int, width: int, conditions: int, size: UNetSize, bits: int) -> None:
        super().__init__()
        self.encoder = Encoder(inputs, height, width, conditions, size)
        self.logits = nn.Linear(math.prod(size.shapes(height, width)[-1]), bits)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map pictures (B, inputs, H, W) and conditions to the logits of bits, (B, N)."""
        return self.logits(self.encoder(x, condition)[-1].flatten(1)).float()


class Prior(nn.Module):
    """Predicts the bits word by word with an LSTM; the input features set its initial state.

    Args:
        inputs: number of input features.
        bits: number N of bits, a multiple of 8.
        width: width of the LSTM.
    """

    place: Tensor

    def __init__(self, inputs: int, bits: int, width: int) -> None:
        super().__init__()
        assert bits % WORD == 0, bits
        self.num_words = bits // WORD
        self.open = nn.Linear(inputs, 2 * width)
        # The last row stands for "no word yet".
        self.embed = nn.Embedding(2**WORD + 1, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.logits = nn.Linear(width, 2**WORD)
        self.register_buffer("place", 2 ** torch.arange(WORD), persistent=False)

    def losses(self, seen: Tensor, bits: Tensor) -> Tensor:
        """Return the cross-entropy (B,) of bits (B, N), in nats per word, given features (B, inputs)."""
        words = self.words(bits)
        before = torch.cat([torch.full_like(words[:, :1], 2**WORD), words[:, :-1]], dim=1)
        output, _ = self.lstm(self.embed(before), self._episode_start(seen))
        return F.cross_entropy(self.logits(output).float().movedim(-1, 1), words, reduction="none").mean(dim=1)

    @torch.no_grad()
    def sample(self, seen: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw bits (B, N) given features (B, inputs); temperature 0 takes the likeliest word."""
        memory = self._episode_start(seen)
        word = torch.full((len(seen), 1), 2**WORD, device=seen.device)
        words = []
        for _ in range(self.num_words):
            output, memory = self.lstm(self.embed(word), memory)
            logits = self.logits(output[:, 0]).float()
            if temperature == 0:
                word = logits.argmax(dim=1, keepdim=True)
            else:
                word = torch.multinomial((logits / temperature).softmax(dim=1), 1)
            words.append(word)
        return self.bits(torch.cat(words, dim=1))

    def words(self, bits: Tensor) -> Tensor:
        """Pack bits (B, N), -1 or 1, into words (B, N / 8) int64; the first bit of a word is its lowest."""
        return ((bits.unflatten(1, (-1, WORD)) > 0) * self.place).sum(dim=-1)

    def bits(self, words: Tensor) -> Tensor:
        """Unpack words (B, N / 8) into bits (B, N), -1 or 1."""
        return torch.where((words[..., None] & self.place) > 0, 1.0, -1.0).flatten(1)

    def _episode_start(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = self.open(seen).tanh().chunk(2, dim=1)
        return hidden[None].contiguous(), cell[None].contiguous()
