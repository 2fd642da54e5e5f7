"""Jobs of this project on Ray clusters: what is sent, what a job can see, and how jobs are asked and told."""
