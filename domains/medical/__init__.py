"""Medical images: ACMIL on whole slides, MEDUSA on chest X-rays."""
