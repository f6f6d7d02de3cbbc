"""verl's replay buffer looking every 50 ms instead of every 2 s, so that polling does not hide a difference."""

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class FastPollReplayBuffer(ReplayBuffer):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{**kwargs, "poll_interval": 0.05})
