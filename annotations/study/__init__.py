"""Explanation studies: do people agree with a model's predictions when they see why?

`preregistration`  the plan, written and hashed before anybody answers
`answers`          what was asked and what people answered, as tables and as files
`analysis`         agreement by arm, contrasts, their intervals and tests: pure functions over answers
`power`            how many raters and items a study needs, by simulating it with the planned analysis
"""
