"""Local stand-ins of every service the flows talk to; demo, tests and bench start them the same way. Production never imports this."""
