"""Fully sharded training of one model on several devices: PyTorch's FSDP2 as a strategy of the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from modules.errors import UserError
from pipelines.callbacks.learning.pretrained import Pretrained


class FullySharded(DDPStrategy):
    """Shards the weights: every rank steps its share, with the gradients and optimizer states of that share.

    Between updates every rank holds the full weights, as under DDP. A rank can therefore play, dream, search and
    evaluate without waiting for the others, while FSDP2's own forward passes gather weights from all ranks. In-place
    changes between updates, for example of a target network, are kept. Checkpoints have the format of one process.
    """

    def setup(self, trainer: Trainer) -> None:
        """Shard the module and its optimizer; without training every rank holds the full module."""
        if trainer.accumulate_grad_batches != 1:
            raise UserError("FullySharded makes an update of every batch: set trainer.accumulate_grad_batches to 1")
        if any(isinstance(callback, Pretrained) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError("FullySharded takes no weights of another run: leave out --init_from and Pretrained")
        super().setup(trainer)
        if isinstance(self.model, FSDPModule):
            self.model.unshard()

    def configure_ddp(self) -> None:
        """Shard the weights in place, where DDP would wrap the module."""
        module = self.model
        assert isinstance(module, LightningModule)
        shapes = [parameter.shape for parameter in module.parameters()]
        for part in module.modules():
            if getattr(part, "capturable", False):
                part.capturable = False  # type: ignore[assignment]  # a CUDA graph would read old weights
            for name, parameter in list(part.named_parameters(recurse=False)):
                parameter.data = parameter.data.contiguous()  # FSDP2 refuses channels_last, and scalars
                if parameter.ndim == 0:
                    setattr(part, name, torch.nn.Parameter(parameter.detach()[None], parameter.requires_grad))
        for tensor in [*module.parameters(), *module.buffers()]:
            torch.distributed.broadcast(tensor.detach(), 0)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(module, "training_step")
        self.shapes = dict(zip(module.parameters(), shapes, strict=True))
        """Shapes of the full weights, by this rank's shares."""

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Learn from a batch and step this rank's share of the weights, then gather the full weights."""
        self._share_out()
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        self.model.unshard()  # type: ignore[union-attr, operator]
        return result

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the full weights, on every rank."""
        if not isinstance(self.model, FSDPModule):
            return super().lightning_module_state_dict()
        self._share_out()
        shapes = {name: self.shapes[share] for name, share in self.model.named_parameters()}  # type: ignore[operator]
        state = super().lightning_module_state_dict()
        state |= {name: _whole(state[name], shape) for name, shape in shapes.items()}
        self.model.unshard()
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the full state of an optimizer, on every rank."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept = {
            index: {key: _whole(value, self.shapes[parameters[index]]) for key, value in entries.items()}
            for index, entries in state["state"].items()
        }
        return {**state, "state": kept}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's share of the full optimizer states."""
        states = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            kept = {
                index: {
                    key: value if key == "step" else _like(value, parameters[index]) for key, value in entries.items()
                }
                for index, entries in state["state"].items()
            }
            states.append({**state, "state": kept})
        super().load_optimizer_state_dict({"optimizer_states": states})

    @torch.no_grad()
    def _share_out(self) -> None:
        """Shard the current weights again; FSDP2 itself would go back to the shares of the last update."""
        module: Any = self.model
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)  # DDP does the same
        own = {}
        for name, parameter in module.named_parameters():
            shares = parameter.chunk(self.world_size)
            own[name] = shares[self.global_rank].clone() if self.global_rank < len(shares) else parameter[:0]
        module.reshard()
        for name, parameter in module.named_parameters():
            parameter.to_local().copy_(own[name])


def _whole(value: Any, shape: torch.Size) -> Any:
    return value.full_tensor().reshape(shape) if isinstance(value, DTensor) else value


def _like(value: Tensor, parameter: DTensor) -> DTensor:
    value = value.reshape(parameter.shape).to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
