//! Mutations that many trials send.

pub const CREATE: &str = "
mutation Create($input: CreateApplicationInput!) {
  createApplication(input: $input) { application { id } userErrors { message field code } }
}";

pub const SAVE: &str = "
mutation Save($input: SavePipelineInput!) {
  savePipeline(input: $input) { pipeline { id name revision } userErrors { message field code } }
}";

pub const START: &str = "
mutation Start($input: StartPipelineInput!) {
  startPipeline(input: $input) { execution { id number } isReplay userErrors { message field code } }
}";

pub const JUDGE: &str = "
mutation Judge($input: JudgeStageInput!) {
  judgeStage(input: $input) { execution { id } userErrors { message field code } }
}";

pub const CANCEL: &str = "
mutation Cancel($input: CancelExecutionInput!) {
  cancelExecution(input: $input) { execution { id status } userErrors { message field code } }
}";
