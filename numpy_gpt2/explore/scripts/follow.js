// A served page: what needs the engine follows the rest

listenToPrompt();
listenToInterventions();
listenToWriting();
listenToComparison();
drawFields();

followers.push(drawTargets, drawChanges);
onShow.push(drawChips, followPrompt, followWithComparison);
show(firstData);
tellPrompt();

// After a reload, or from a bookmark, the state is another than the one that the server put into the page.
returnTo(history);
