"""Local stand-ins for every service that the flows use. Demo, tests and bench start them; production never imports this."""
