"""The explorer's vLLM servers: started, asked whether they live, restarted, and asked for rollouts."""
