"""The pages: one router a subject, each useful without JavaScript; what changes something is a form."""
