"""LaMP's tasks as text in, text out: prompts, what the model's answer means, and how it is scored."""
