"""An agent-loop manager as a user writes one, named in ``rollout.agent.agent_loop_manager_class``: verl's, but the
first prompt of every batch is sampled greedily and noted in ``greedy.txt`` of the run's folder."""

from pathlib import Path

from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

FILE = "greedy.txt"


class GreedyFirst(AgentLoopManagerTQ):
    """``__do_sample__`` is verl's own word for a prompt whose group is sampled greedily."""

    def generate_sequences(self, prompts) -> None:
        tu.assign_non_tensor_stack(prompts, "__do_sample__", [place > 0 for place in range(len(prompts))])
        with open(Path(self.config.trainer.default_local_dir) / FILE, "a") as file:
            file.write(f"{next(iter(prompts['uid']))}\n")
        super().generate_sequences(prompts)
