"""After a promotion: new films are scored with the champion, it is watched on them, and put on hold.

`log` keeps what was answered, `scoring` answers, `windows` takes the latest answers, and `watching` judges
them (`judging`, `checks`) by the change plan, each look with its part of one error rate (`looks`). `asking`
draws the films that are worth a label, and `oversight` keeps what readers decide. Films are known by the hash
of their content and patients by the pseudonyms of the site; no file name is kept.
"""

from pipeline.monitoring.asking import ask
from pipeline.monitoring.log import ScoreLog, add_labels
from pipeline.monitoring.oversight import film_story, note, read_log
from pipeline.monitoring.scoring import score_films
from pipeline.monitoring.watching import watch

__all__ = ["ScoreLog", "add_labels", "ask", "film_story", "note", "read_log", "score_films", "watch"]
