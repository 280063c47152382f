"""Rules of two-player board games from open_spiel. This file handles the quirks of open_spiel."""

from __future__ import annotations

from itertools import count

import numpy as np
import pyspiel

from modules.errors import UserError, nearest


class BoardRules:
    """Rules of a two-player board game from open_spiel. States are arrays (B,) of its state objects.

    A reward is that of the player who moves, whatever number open_spiel gives this player: White is player 1 in chess.

    Args:
        name: name of a game in open_spiel, with parameters if needed: tic_tac_toe, go(board_size=9).

    Raises:
        UserError: the game is unknown, or not a game of perfect information, without chance, in which two players
            alternate and get one outcome at the end.
    """

    def __init__(self, name: str) -> None:
        known = pyspiel.registered_names()
        self.name = name
        if name.partition("(")[0] not in known:
            raise UserError(
                f"unknown game {name!r}: expected one of open_spiel's, the nearest is {nearest(name, known)}"
            )
        try:
            self.game = pyspiel.load_game(name)
        except pyspiel.SpielError as error:
            raise UserError(f"{name} cannot be loaded: {' '.join(str(error).split())}") from None
        kind = self.game.get_type()
        wanted = {
            "two players": self.game.num_players() == 2,
            "alternating moves": kind.dynamics == pyspiel.GameType.Dynamics.SEQUENTIAL,
            "no chance": kind.chance_mode == pyspiel.GameType.ChanceMode.DETERMINISTIC,
            "perfect information": kind.information == pyspiel.GameType.Information.PERFECT_INFORMATION,
            "a zero-sum outcome": kind.utility == pyspiel.GameType.Utility.ZERO_SUM,
            "rewards only at the end": kind.reward_model == pyspiel.GameType.RewardModel.TERMINAL,
        }
        if missing := [text for text, there in wanted.items() if not there]:
            raise UserError(f"{name} cannot be searched: expected {' and '.join(missing)}")
        self.num_actions = self.game.num_distinct_actions()

    def apply(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Execute moves (B,) int64.

        Returns:
            The next states (B,), the rewards (B,) float32 of the players who moved, and flags (B,) bool that are True
            where the game is over.
        """
        after = np.empty(len(states), object)
        reward, ended = np.zeros(len(states), np.float32), np.zeros(len(states), bool)
        for row, (state, action) in enumerate(zip(states, actions.tolist(), strict=True)):
            mover, child = state.current_player(), state.child(action)
            if child.is_terminal():
                reward[row], ended[row] = child.returns()[mover], True
            else:
                assert child.current_player() == 1 - mover, f"player {mover} of {self.game} moves twice"
            after[row] = child
        return after, reward, ended

    def legal_actions(self, states: np.ndarray) -> np.ndarray:
        """Return the legal actions (B, K) int64 of states, padded with -1; a finished game has none."""
        legal = [[] if state.is_terminal() else state.legal_actions() for state in states]
        actions = np.full((len(states), max(1, *map(len, legal))), -1)
        for row, moves in zip(actions, legal, strict=True):
            row[: len(moves)] = moves
        return actions

    def play_out(
        self, states: np.ndarray, depth: int | None, discount: float, generator: np.random.Generator
    ) -> np.ndarray:
        """Return the discounted returns (B,) float32 of random play, for the player who moves in each state.

        Args:
            states: game states (B,); a finished game returns 0.
            depth: number of moves after which play is cut; null plays to the end.
            discount: discount factor per move, a positive number although the players alternate.
            generator: generator of the moves.
        """
        returns = np.zeros(len(states), np.float32)
        for row, state in enumerate(states):
            if state.is_terminal():
                continue
            mover, playing, weight = state.current_player(), state.clone(), 1.0
            for _ in count() if depth is None else range(depth):
                moves = playing.legal_actions()
                playing.apply_action(moves[int(generator.random() * len(moves))])
                if playing.is_terminal():
                    returns[row] = weight * playing.returns()[mover]
                    break
                weight *= discount
        return returns
